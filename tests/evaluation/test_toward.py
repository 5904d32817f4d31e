"""The order by a target vector, against whole forward passes."""

import pytest
import torch
from cases import tiny_model
from slow_maps import by_hooks

from melbo import AdapterMap, CausalMap, MelboError, Prompts, Random, fit
from melbo.evaluation.rank import load_ranking, rank

TEXTS = ["Tell me how to bake a cake"], ["dog and sun", "he or she ?"], ["red or blue"]


def made(name, kind=CausalMap, **more):
    lm = tiny_model(name, torch.float64)
    used, chosen, told = (Prompts.chat(lm, texts) for texts in TEXTS)
    layers = (1, 2) if kind is CausalMap else ((0, 1), 2)
    features = fit(kind(lm, used, *layers, **more), Random(3, 3.0), progress=False).features
    return lm, features, chosen, told


def ranked(lm, features, chosen, told, **more):
    settings = {"by": "target", "num_controls": 2, "max_new_tokens": 2, "progress": False}
    return rank(lm, features, chosen, told, **{**settings, **more})


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mixtral"])
@pytest.mark.parametrize("more", [{}, {"positions": "target"}, {"read": "attention"}])
def test_scores_are_those_of_whole_passes(name, more):
    lm, features, chosen, told = made(name, **more)
    ids = [lm.tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no")]
    head = lm.model.get_output_embeddings().weight
    vector = head[ids[0]] - head[ids[1]]
    ranking = ranked(lm, features, chosen, told, toward=("yes", "no"))
    V = features.scale * features.V.double()
    for split, prompts in (("validation", chosen), ("held_out", told)):
        where = more.get("positions", "all")
        change = by_hooks(lm, prompts, 1, lm.depth, V, where).mean((1, 2))
        for r in ranking.features:
            truth = (change[r.index] @ vector).item()
            assert r.score("target", split) == pytest.approx(truth, rel=1e-4, abs=1e-5)
    # a vector that is given, and a pair given as contrast, are the same
    for other in ({"toward": vector}, {"contrast": ("yes", "no")}):
        again = ranked(lm, features, chosen, told, **other)
        for a, b in zip(again.features, ranking.features, strict=True):
            assert a.score("target", "validation") == pytest.approx(
                b.score("target", "validation"), rel=1e-6
            )


def test_the_order_is_by_validation_and_is_saved(tmp_path):
    world = made("llama")
    ranking = ranked(*world, toward=("yes", "no"))
    scores = [
        r.score("target", "validation") for r in ranking.features if r.validation.flag == "active"
    ]
    assert scores == sorted(scores, reverse=True)
    ranking.save(tmp_path)
    saved, _ = load_ranking(tmp_path)
    assert saved["settings"]["toward"] == ["yes", "no"]
    first = ranking.features[0]
    assert saved["features"][0]["toward"]["held_out"] == first.score("target", "held_out")
    rivals = [r.score("target", "held_out") for r in ranking.controls if r.flag == "active"]
    assert ranking.summary["best_control"] == (max(rivals) if rivals else None)


def test_adapters_are_ordered_too():
    lm, adapters, chosen, told = made("llama", AdapterMap)
    ranking = ranked(lm, adapters, chosen, told, toward=("yes", "no"))
    late = AdapterMap(lm, chosen, (0, 1), lm.depth)
    head = lm.model.get_output_embeddings().weight
    ids = [lm.tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no")]
    truth = late.value(adapters.scale * adapters.V) @ (head[ids[0]] - head[ids[1]])
    for r in ranking.features:
        assert r.score("target", "validation") == pytest.approx(truth[r.index].item(), rel=1e-5)


def test_a_score_that_was_not_taken_is_refused():
    ranking = ranked(*made("llama"), by="novel")
    for name in ("target", "beauty", "contrast"):
        with pytest.raises(MelboError, match=f"no score '{name}': expected one of alpha, effect"):
            ranking.features[0].score(name, "validation")


def test_a_head_on_another_width_is_refused():
    lm, features, chosen, told = made("opt_post_norm")
    with pytest.raises(MelboError, match="output head of opt_post_norm has no rows of width 32"):
        ranked(lm, features, chosen, told, toward=("yes", "no"))
