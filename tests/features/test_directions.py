import json

import pytest
import torch
from cases import tiny_model
from toys import directions, smooth

from melbo import CausalMap, Exponential, FeatureSet, MelboError, Prompts, fit


def feature_set(m=5, d=8, **more):
    return FeatureSet(
        directions(m, d),
        directions(m, 6, 1),
        torch.linspace(1, 2, m, dtype=torch.float64),
        2.5,
        1,
        3,
        {"seed": 7},
        **more,
    )


def test_save_and_load_give_the_same_features(tmp_path):
    first = fit(smooth(), Exponential(4, 1.0), progress=False).features
    again = FeatureSet.load(first.save(tmp_path / "run"))
    assert torch.equal(first.V, again.V)
    assert torch.equal(first.U, again.U)
    assert torch.equal(first.alpha, again.alpha)
    assert (again.scale, again.source, again.target) == (first.scale, first.source, first.target)
    assert again.meta == json.loads(json.dumps(first.meta))
    assert {"map", "method", "seed", "fit", "versions", "created"} <= again.meta.keys()
    assert not list((tmp_path / "run").glob("*.part"))


def test_indexing_gives_sets():
    some = feature_set()
    assert len(some[2]) == 1
    assert torch.equal(some[-1].V, some.V[4:])
    assert torch.equal(some[[3, 0]].alpha, some.alpha[[3, 0]])
    assert [len(f) for f in some] == [1] * 5
    with pytest.raises(MelboError, match="expected 0 to 4"):
        some[5]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"V": directions(5, 8) * 2}, "row 0 of V has norm 2"),
        ({"U": directions(5, 6).index_fill(0, torch.tensor([3]), float("nan"))}, "row 3 of U"),
        ({"U": directions(4, 6)}, "expected"),
        ({"alpha": torch.zeros(5, 1)}, "expected"),
        ({"alpha": torch.full((5,), float("inf"))}, "not finite"),
        ({"scale": 0.0}, "scale is 0"),
    ],
)
def test_a_set_checks_itself(change, says):
    whole = {k: getattr(feature_set(), k) for k in ("V", "U", "alpha", "scale", "source", "target")}
    with pytest.raises(MelboError, match=says):
        FeatureSet(**{**whole, **change})


def test_a_run_is_never_overwritten_unless_told_to(tmp_path):
    feature_set().save(tmp_path)
    (tmp_path / "ranking.json").write_text("{}")
    with pytest.raises(MelboError, match="already holds a run.*force=True"):
        feature_set(3).save(tmp_path)
    assert len(FeatureSet.load(tmp_path)) == 5
    feature_set(3).save(tmp_path, force=True)
    assert len(FeatureSet.load(tmp_path)) == 3
    assert not (tmp_path / "ranking.json").exists()  # it belonged to the old features


def damage(folder, what):
    run, tensors = folder / "run.json", folder / "features.safetensors"
    if what == "missing":
        run.unlink()
    elif what == "truncated json":
        run.write_text(run.read_text()[:40])
    elif what == "schema":
        run.write_text(json.dumps({**json.loads(run.read_text()), "schema": 99}))
    elif what == "lacks scale":
        run.write_text(
            json.dumps({k: v for k, v in json.loads(run.read_text()).items() if k != "scale"})
        )
    elif what == "truncated tensors":
        tensors.write_bytes(tensors.read_bytes()[:100])
    elif what == "no tensors":
        tensors.unlink()


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("missing", "no run in"),
        ("truncated json", "truncated"),
        ("schema", "schema 99.*reads 1"),
        ("lacks scale", "lacks scale"),
        ("truncated tensors", "cannot be read"),
        ("no tensors", "cannot be read"),
    ],
)
def test_damaged_runs_say_what_is_wrong(tmp_path, what, says):
    damage(feature_set().save(tmp_path), what)
    with pytest.raises(MelboError, match=says):
        FeatureSet.load(tmp_path)


def test_a_run_of_another_model_names_both(tmp_path):
    lm, other = tiny_model("llama"), tiny_model("llama")
    with torch.no_grad():
        next(other.model.parameters()).mul_(2)
    prompts = Prompts(("a",), ((5, 6, 7, 8, 9),))
    fit(CausalMap(lm, prompts, 1, 2), Exponential(2, 1.0), progress=False).features.save(tmp_path)
    assert len(FeatureSet.load(tmp_path, lm)) == 2
    other.name = "the-other"
    with pytest.raises(MelboError, match=f"fitted on {lm.name}.*this is the-other"):
        FeatureSet.load(tmp_path, other)
