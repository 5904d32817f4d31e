import json
import sys
from pathlib import Path

import pytest

import research
from melbo.discovery.recipes import RECIPES, method_identity

sys.path.insert(0, str(Path(research.__file__).parent / "results"))
from migrate import identity, migrate, migrate_row

EXPONENTIAL = (
    "Exponential(num_factors=64, scale=1.0, max_steps=10, tol=0.001, orthogonalise='qr', "
    "start='projected', beta=1.0)"
)


@pytest.mark.parametrize("recipe", [name for name, made in RECIPES.items() if made.method])
def test_the_identity_of_a_repr_is_that_of_the_method(recipe):
    m = 8 if RECIPES[recipe].signed else 4
    assert identity(repr(RECIPES[recipe].method(m, 1.0, 12))) == method_identity(recipe, 8)


def test_a_row_of_an_organism_gets_new_keys_in_the_place_of_the_old():
    row = {
        "organism": "ALL",
        "way": "soft",
        "method": EXPONENTIAL.replace("'qr'", "'soft'"),
        "seed": 0,
        "benchmark": "8f15da3fc271fd3e",
        "scale": 21.896654129649097,
    }
    made = migrate_row(row)
    assert list(made.items()) == [
        ("organism", "ALL"),
        ("recipe", "soft"),
        ("method", {"name": "Exponential", "num_factors": 64, "orthogonalise": "soft"}),
        ("seed", 0),
        ("benchmark", 1),
        ("scale", 21.896654129649097),
    ]
    assert migrate_row(made) == made
    assert migrate_row({**row, "method": None})["method"] is None
    assert migrate_row({**row, "benchmark": "of old"})["benchmark"] == "of old"


def test_settings_of_an_experiment_lose_defaults_and_folders():
    row = {
        "settings": {
            "model": "benchmarks/organisms/ALL",
            "prompts": "experiments/topics.txt",
            "test": 64,
            "dtype": "auto",
            "way": "exponential",
        },
        "shuffle": 0,
        "method": EXPONENTIAL,
    }
    made = migrate_row(row)
    settings = {"model": "ALL", "prompts": "topics.txt", "test": 64, "recipe": "exponential"}
    assert made == {
        "settings": settings,
        "shuffle": 0,
        "method": {"name": "Exponential", "num_factors": 64},
    }
    own = {"model": "smollm2", "prompts": ["Tell me a story."], "dtype": "bfloat16"}
    assert migrate_row({"settings": own}) == {"settings": own}


def test_what_is_no_method_is_refused():
    with pytest.raises(ValueError, match="is no repr of a method"):
        identity("Linear")
    with pytest.raises(ValueError, match="expected one of"):
        identity("Other(num_factors=2)")


def test_a_file_keeps_its_rows_and_everything_but_their_keys(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [
        {"way": "random", "method": None, "x": [0.1, 1e-5], "t": "é"},
        {"way": "linear", "x": {}},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert migrate(path) == 2
    expected = [json.dumps(row).replace('"way"', '"recipe"') for row in rows]
    assert path.read_text().splitlines() == expected
