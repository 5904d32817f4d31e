from dataclasses import dataclass
from pathlib import Path

import pytest

from melbo import MelboError
from melbo.records import ResultLog
from research.experiments import EXPERIMENTS, SampleComplexity
from research.experiments.base import RESULTS, VERSION, own_rows, settings_file, typed
from research.organisms import MADE

PRESETS = ("laptop", "paper")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_published_settings_are_read_in_any_folder(name, preset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert EXPERIMENTS[name].read(settings_file(name), preset).cases


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_published_rows_are_those_of_the_published_settings(name):
    chosen = EXPERIMENTS[name].read(settings_file(name), "laptop")
    rows = ResultLog(RESULTS / name / "rows.jsonl")
    assert rows.missing(chosen.cases) == []
    own = own_rows(chosen, rows)
    assert len(own) == len(chosen.cases)
    assert chosen.table(own).startswith("| ")
    assert (RESULTS / name / "picture.png").exists()


def test_missing_and_unknown_settings_are_refused(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text('[laptop]\nmodel = "smollm2"\nsize = 3\n')
    with pytest.raises(MelboError, match="no setting size"):
        SampleComplexity.read(path, "laptop")
    with pytest.raises(MelboError, match=r"no table \[paper\]"):
        SampleComplexity.read(path, "paper")
    path.write_text('[laptop]\nmodel = "smollm2"\n')
    with pytest.raises(MelboError, match="is missing"):
        SampleComplexity.read(path, "laptop")
    path.write_text('[laptop]\nfolder = "here"\n')
    with pytest.raises(MelboError, match="no setting folder"):
        SampleComplexity.read(path, "laptop")
    with pytest.raises(MelboError, match="cannot read"):
        SampleComplexity.read(tmp_path / "none.toml", "laptop")


NUMBERS = "numbers = [1, 2, 4, 8, 12, 16]"


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("shuffles = 5", "shuffles = 0", "shuffles is 0: expected a whole number of at least 1"),
        (
            NUMBERS,
            'numbers = ["a"]',
            r"numbers is \('a',\): expected a list of one or more, each a whole number",
        ),
        (NUMBERS, "numbers = [1, 2, 1]", r"numbers is \(1, 2, 1\): expected no value twice"),
        (
            NUMBERS,
            "numbers = [[1]]",
            "numbers is .*: expected a list of one or more, each a whole number",
        ),
        (
            'contrast = ["Yes", "No"]',
            'contrast = ["Yes"]',
            r"contrast is \('Yes',\): expected a list of 2, each a string",
        ),
        (NUMBERS, "numbers = 4", "numbers is 4: expected a list"),
        (NUMBERS, "numbers = []", r"numbers is \(\): expected a list"),
        ('contrast = ["Yes", "No"]', 'contrast = "Yes"', "contrast is 'Yes': expected a list"),
        ('"exponential", ', '"best", ', "no recipe best"),
        ('"exponential", ', '"cpe", ', "cpe finds adapters, and experiments take directions"),
    ],
)
def test_values_that_cannot_be_are_refused(before, after, says, tmp_path):
    whole = settings_file("sample-complexity").read_text().split("[paper]")[0]
    assert before in whole
    path = tmp_path / "x.toml"
    path.write_text(whole.replace(before, after))
    with pytest.raises(MelboError, match=says):
        SampleComplexity.read(path, "laptop")


def test_prompts_are_found_beside_the_settings_and_among_those_that_come_along(tmp_path):
    text = settings_file("sample-complexity").read_text()
    path = tmp_path / "own.toml"
    path.write_text(text)
    shipped = SampleComplexity.read(path, "laptop")
    assert shipped.prompts_file == settings_file("x").parents[1] / "prompts" / "questions.txt"
    assert shipped.cases[0]["pool"] == "bef6b1f0b4fbd8ad"
    (tmp_path / "questions.txt").write_text("he\nshe\n")
    own = SampleComplexity.read(path, "laptop")
    assert own.prompts_file == tmp_path / "questions.txt"
    assert own.cases[0]["pool"] != "bef6b1f0b4fbd8ad"
    assert own.settings == shipped.settings
    assert own.settings["prompts"] == "questions.txt"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = elsewhere / "own.toml"
    path.write_text(text.replace("questions.txt", str(tmp_path / "questions.txt")))
    assert SampleComplexity.read(path, "laptop").prompts_file == tmp_path / "questions.txt"


def test_a_model_is_an_organism_where_there_is_one_of_its_name(tmp_path, monkeypatch):
    chosen = EXPERIMENTS["refusal"].read(settings_file("refusal"), "laptop")
    assert Path(chosen.model_path) == MADE / "ALL"
    assert chosen.settings["model"] == "ALL"
    assert chosen.cases[0]["weights"] == "1c3fd520aeb4d269"
    other = EXPERIMENTS["depth"].read(settings_file("depth"), "laptop")
    assert other.model_path == other.cases[0]["weights"] == "smollm2"


def test_settings_that_have_their_default_are_not_in_the_key_of_a_row(small):
    assert "dtype" not in small.settings
    assert "shuffles" not in small.settings
    assert small.describe()["dtype"] == "auto"
    assert small.settings["contrast"] == ["yes", "no"]
    assert small.cases[0]["version"] == VERSION
    assert small.cases[0]["method"] == {"name": "Exponential", "num_factors": 4}
    assert small.cases[-1]["method"] is None


def test_typed_rows_leave_out_what_is_not_read():
    @dataclass(frozen=True)
    class Some:
        add_v: float
        cos: float | None = None

    rows = typed(Some, [{"add v": 1.0, "environment": {}}, {"add v": 2.0, "cos": 0.5}])
    assert rows == [Some(1.0), Some(2.0, 0.5)]
    with pytest.raises(TypeError):
        typed(Some, [{"cos": 0.5}])
