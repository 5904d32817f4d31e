"""Run folders that melbo wrote before it was rebuilt into rooms (at commit c0002b0) still load.

``runs_before`` holds four of them: directions with a ranking and a selection, directions of the
last tokens only, adapters, and a pair of prompts.
"""

import shutil
from pathlib import Path

import pytest
import torch
from cases import tiny_model

from melbo import FeatureSet, MelboError, select, steer
from melbo.evaluation.rank import load_ranking, rank
from melbo.features.run_folder import read_tensors
from melbo.features.saved import load_features, load_steerable
from melbo.maps.described import map_from_description
from melbo.models.placement import Placement

RUNS = Path(__file__).parent / "runs_before"

#: Norm and first entries of the logits after a fitted prompt under feature 1, or the pair of
#: prompts, at strength 1.5, as the version that wrote the runs computed them.
LOGITS = {
    "directions": (12.918977, (0.391759, 1.826625, 0.021716, -0.167163)),
    "last_tokens": (13.312643, (-1.476661, 0.113896, -0.431734, 0.643503)),
    "adapters": (14.194744, (-1.047815, -0.905412, -2.700634, -0.092495)),
    "contrast": (12.724553, (-1.261964, -0.042560, 0.959279, 0.720744)),
}
PLACEMENTS = {
    "directions": Placement(1, 3),
    "last_tokens": Placement(1, 3, 2, "target", True),
    "adapters": Placement(0, 3),
}


@pytest.fixture(scope="module")
def lm():
    """A tiny model whose weights depend on no library: integers modulo a prime."""
    lm = tiny_model("llama", torch.float32)
    with torch.no_grad():
        for salt, (_, p) in enumerate(sorted(lm.model.named_parameters())):
            n = torch.arange(p.numel())
            spread = ((31 * n * n + 17 * n + 101 * salt) % 1009 / 1009 - 0.5).view_as(p)
            p.copy_(1 + spread if p.ndim == 1 else spread)
    return lm


@pytest.mark.parametrize("name", PLACEMENTS)
def test_features_are_what_was_saved(lm, name):
    features = load_features(RUNS / name, lm)
    V, U, alpha = read_tensors(RUNS / name, ("V", "U", "alpha"))
    assert torch.equal(features.V, V)
    assert torch.equal(features.U, U)
    assert torch.equal(features.alpha, alpha)
    assert V.shape == (3, 128 if name == "adapters" else lm.width)
    assert features.scale == (4.0 if name == "adapters" else 2.0)
    assert (features.source, features.target) == (PLACEMENTS[name].source, 3)
    assert features.placement == PLACEMENTS[name]
    assert features.meta["seed"] == 0
    assert features.meta["fit"]["status"] == "max_steps"


def test_a_pair_of_prompts_is_what_was_saved(lm):
    pair = load_steerable(RUNS / "contrast", lm)
    assert (pair.method, pair.layers, pair.coefficient) == ("actadd", (1, 2), 3.0)
    assert pair.plus.texts == ("yes she was red",)
    assert pair.minus.texts == ("no he",)
    assert pair.edit(strength=2.0).edits[1].strength == 2.0


@pytest.mark.parametrize("name", LOGITS)
def test_they_steer_as_they_did(lm, name):
    features = load_steerable(RUNS / name, lm)
    prompt = torch.tensor([load_features(RUNS / "directions").provenance.prompts.tokens[0]])
    with steer(lm, features[0 if name == "contrast" else 1], strength=1.5), torch.no_grad():
        logits = lm.model(prompt).logits[0, -1]
    norm, first = LOGITS[name]
    assert logits.norm().item() == pytest.approx(norm, rel=1e-4)
    assert logits[:4].tolist() == pytest.approx(first, abs=2e-3)


@pytest.mark.parametrize("name", PLACEMENTS)
def test_their_maps_are_made_again(lm, name):
    features = load_features(RUNS / name, lm)
    saved = features.meta["map"]
    cmap = map_from_description(lm, saved)
    assert cmap.placement == PLACEMENTS[name]
    described = cmap.describe()
    # a model's place and precision are kept since
    model = {k: v for k, v in described["model"].items() if k in saved["model"]}
    assert {**described, "model": model, "source_norm": saved["source_norm"]} == saved
    assert cmap.source_norm == pytest.approx(saved["source_norm"], rel=1e-4)
    effect = cmap.value(features.scale * features.V)
    assert torch.allclose(torch.nn.functional.normalize(effect, dim=-1), features.U, atol=1e-3)


@pytest.mark.parametrize("name", LOGITS)
def test_another_model_is_refused(name):
    with pytest.raises(MelboError, match="fitted on llama .weights 11feb25d"):
        load_steerable(RUNS / name, tiny_model("llama", torch.float32))


def test_the_ranking_loads_and_comes_out_the_same_again(lm):
    saved, replies = load_ranking(RUNS / "directions")
    features = FeatureSet.load(RUNS / "directions", lm)
    validation, held_out = (
        features.provenance.prompts_like(lm, saved["settings"][split]["texts"])
        for split in ("validation", "held_out")
    )
    again = rank(
        lm,
        features,
        validation,
        held_out,
        by=saved["by"],
        contrast=tuple(saved["settings"]["contrast"]),
        num_controls=2,
        max_new_tokens=4,
        progress=False,
    )
    assert [c.text for c in replies] == [c.text for c in again.completions]
    for kind in ("features", "controls"):
        for old, new in zip(saved[kind], getattr(again, kind), strict=True):
            assert (old["index"], old["flag"]) == (new.index, new.flag)
            assert old["effect"] == pytest.approx(new.effect, rel=1e-4)
            assert old["held_out"]["contrast"] == pytest.approx(new.held_out.contrast, abs=1e-3)
            assert old["held_out"]["kl"] == pytest.approx(new.held_out.kl, rel=1e-2)
    assert again.describe()["settings"] == saved["settings"]


def test_a_selection_is_continued_where_it_was(tmp_path):
    shutil.copy(RUNS / "directions" / "selection.jsonl", tmp_path)

    def ask(which, pairs):
        raise AssertionError("everything was asked before")

    key = {"judge": "a stand-in", "seed": 0}
    found = select(3, ask, 2, 2, 20, tmp_path, key, progress=False)
    assert (found.best, found.order) == (2, (2, 0, 1))
