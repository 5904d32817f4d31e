import json
import math
import re

import pytest
import torch
from cases import tiny_model

from melbo import CausalMap, Exponential, MelboError, Prompts, Random, fit, steer
from melbo.evaluation.rank import ORDERS, load_ranking, rank
from melbo.evaluation.report import report
from melbo.maths.statistics import kl


@pytest.fixture(scope="module")
def world():
    lm = tiny_model("llama")
    used, chosen, reported = (
        Prompts.chat(lm, texts)
        for texts in (["Tell me how to bake a cake"], ["dog and sun", "he or she"], ["red or blue"])
    )
    features = fit(CausalMap(lm, used, 1, 3), Exponential(4, 2.0), progress=False).features
    return lm, features, chosen, reported


def ranked(world, **more):
    lm, features, chosen, reported = world
    return rank(
        lm,
        features,
        chosen,
        reported,
        **{
            "max_new_tokens": 4,
            "num_controls": 3,
            "contrast": ("yes", "no"),
            "progress": False,
            **more,
        },
    )


@pytest.mark.parametrize("by", ORDERS)
def test_orders_go_by_validation_scores_active_first(world, by):
    ranking = ranked(world, by=by)
    assert sorted(r.index for r in ranking.features) == [0, 1, 2, 3]
    assert sorted(r.index for r in ranking.controls) == [0, 1, 2]
    for rows in (ranking.features, ranking.controls):
        for group in (True, False):
            scores = [
                r.score(by, "validation") for r in rows if (r.validation.flag == "active") is group
            ]
            assert scores == sorted(scores, reverse=True)
        active = [r.validation.flag == "active" for r in rows]
        assert active == sorted(active, reverse=True)


def test_alpha_and_effect_are_those_of_the_fit(world):
    lm, features, *_ = world
    ranking = ranked(world)
    effect = (
        CausalMap.from_description(lm, features.meta["map"])
        .value(features.scale * features.V)
        .norm(dim=-1)
    )
    for r in ranking.features:
        assert r.alpha == pytest.approx(features.alpha[r.index].item())
        assert r.effect == pytest.approx(effect[r.index].item(), rel=1e-6)
        assert r.score("alpha", "held_out") == r.alpha**2
    assert all(r.alpha is None for r in ranking.controls)


def test_kl_is_of_the_first_token_and_averaged_over_prompts(world):
    lm, features, chosen, _ = world
    r = ranked(world).features[0]
    values = []
    for tokens in chosen.tokens:
        plain = lm.model(torch.tensor([tokens])).logits[0, -1]
        with steer(lm, features[r.index]):
            values.append(kl(lm.model(torch.tensor([tokens])).logits[0, -1], plain))
    assert r.validation.kl == pytest.approx(sum(values) / 2, rel=1e-3)


def test_the_control_is_random_at_the_same_scale_and_goes_through_the_same(world):
    _, _, chosen, reported = world
    ranking = ranked(world)
    assert {c.kind for c in ranking.completions} == {"unsteered", "feature", "control"}
    for i in range(3):
        assert [c.prompt_text for c in ranking.completions.of("control", i)] == [
            *chosen.texts,
            *reported.texts,
        ]
    again, other = ranked(world), ranked(world, seed=1)
    assert [r.effect for r in again.controls] == [r.effect for r in ranking.controls]
    assert {r.effect for r in other.controls}.isdisjoint(r.effect for r in ranking.controls)


def test_summary_counts_flags_and_compares_with_the_best_control(world):
    ranking = ranked(world)
    facts = ranking.summary
    assert sum(facts["features"].values()) == 4
    assert sum(facts["controls"].values()) == 3
    rivals = [r.held_out.novel for r in ranking.controls if r.flag == "active"]
    if rivals:
        assert facts["best_control"] == max(rivals)
        assert facts["above_best_control"] == sum(
            r.held_out.novel > max(rivals) for r in ranking.features if r.flag == "active"
        )
    assert ranked(world, by="alpha").summary["above_best_control"] is None


def test_saved_rankings_come_back(world, tmp_path):
    ranking = ranked(world)
    ranking.save(tmp_path)
    saved, completions = load_ranking(tmp_path)
    assert saved == json.loads(json.dumps(ranking.describe()))
    assert [(c.kind, c.feature, c.text) for c in completions] == [
        (c.kind, c.feature, c.text) for c in ranking.completions
    ]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"by": "beauty"}, "no order 'beauty'"),
        ({"by": "contrast", "contrast": None}, "needs two strings"),
        ({"contrast": ("yes", "yes sun")}, "begin with the same token"),
        ({"contrast": ("yes", "")}, "at least one token each"),
        ({"num_controls": 0}, "num_controls is 0"),
        ({"by": "target", "contrast": None}, "needs a target vector, or two strings"),
        ({"by": "target", "toward": ("yes", "yes sun")}, "begin with the same token"),
        ({"by": "target", "toward": torch.ones(3)}, r"shape \(3,\): expected \[32\]"),
        ({"by": "target", "toward": torch.zeros(32)}, "finite and not zero"),
        ({"toward": ("yes", "no")}, "belongs to the order 'target'"),
    ],
)
def test_settings_that_cannot_work_are_refused(world, settings, says):
    with pytest.raises(MelboError, match=says):
        ranked(world, **settings)


def test_held_out_prompts_have_no_part_in_the_order(world):
    lm, features, chosen, _ = world
    other = Prompts.chat(lm, ["you and we is was"])
    two = rank(
        lm,
        features,
        chosen,
        other,
        max_new_tokens=4,
        num_controls=3,
        contrast=("yes", "no"),
        by="kl",
        progress=False,
    )
    one = ranked(world, by="kl")
    assert [r.index for r in one.features] == [r.index for r in two.features]
    assert [r.held_out.kl for r in one.features] != [r.held_out.kl for r in two.features]


def test_controls_are_not_the_directions_of_a_random_fit(world):
    lm, features, chosen, reported = world
    cmap = CausalMap.from_description(lm, features.meta["map"])
    chance = fit(cmap, Random(3, 2.0), seed=0).features
    ranking = rank(
        lm, chance, chosen, reported, max_new_tokens=2, num_controls=3, seed=0, progress=False
    )
    features, controls = (
        {round(r.effect, 9) for r in rows} for rows in (ranking.features, ranking.controls)
    )
    assert features.isdisjoint(controls)


@pytest.mark.parametrize(
    "alpha", [[0.0, 3.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0], [2.0, 0.0, 1.0, 0.0]]
)
def test_features_without_any_strength_come_last_of_their_kind(world, alpha, tmp_path):
    """Non-negative least squares gives strengths of exactly zero."""
    lm, features, chosen, reported = world
    some = features.replaced(features.V, features.U, torch.tensor(alpha).to(features.alpha))
    ranking = ranked((lm, some, chosen, reported), by="alpha")
    for flag in (True, False):
        group = [r for r in ranking.features if (r.validation.flag == "active") is flag]
        assert [r.alpha for r in group] == sorted((r.alpha for r in group), reverse=True)
    assert sorted(r.alpha for r in ranking.features) == sorted(alpha)
    for r in ranking.features:
        assert r.score("alpha", "validation") == alpha[r.index] ** 2
        assert all(math.isfinite(x) for x in (r.effect, r.validation.novelty, r.held_out.nll))
    folder = tmp_path / "run"
    some.save(folder)
    ranking.save(folder)
    again, _ = load_ranking(folder)
    assert [r["index"] for r in again["features"]] == [r.index for r in ranking.features]
    page = report(folder).read_text(encoding="utf-8")
    assert not re.search(r"\b(nan|inf)\b", page.casefold())
    # strength has no part in steering
    ids = torch.tensor([chosen.tokens[0]])
    found = []
    for each in (features, some):
        with steer(lm, each[0]), torch.no_grad():
            found.append(lm.model(input_ids=ids).logits)
    assert torch.equal(*found)
