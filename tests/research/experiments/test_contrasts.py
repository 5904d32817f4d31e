from dataclasses import replace

import pytest
import torch

from melbo import CausalMap, Exponential, MelboError, ablate, fit, steer
from research.experiments import Depth, Multiplicity, run


def test_sample_complexity_tells_differences_within_shuffles(small):
    # by recipe, shuffle and number
    tests = {
        "exponential": [[1.0, 3.0], [2.0, 6.0]],
        "linear": [[0.0, 1.0], [1.0, 4.0]],
        "random": [[0.5, 0.5]],
    }
    rows = [
        {
            "recipe": recipe,
            "number": n,
            "shuffle": s,
            "test": test,
            "unsteered": -1.0,
            "seconds": 2.0 * s,
        }
        for recipe, of in tests.items()
        for s, both in enumerate(of)
        for n, test in zip((1, 2), both, strict=True)
    ]
    lines = {line.split(" | ")[0]: line for line in small.table(rows[:-1]).splitlines()}
    assert lines["| 1"] == "| 1 | 1.5 ± 0.5 | 0.5 ± 0.5 | 0.5 |"
    assert lines["| seconds, 1"] == "| seconds, 1 | 1 ± 1 | 1 ± 1 | 0 |"
    assert lines["| all"] == "| all | 3 ± 1 | 1.5 ± 1 | – |"  # the random shuffle lacks a number
    assert lines["| 2 less 1"] == "| 2 less 1 | 3 ± 1 | 2 ± 1 | – |"
    assert lines["| exponential less it, all"] == "| exponential less it, all | – | 1.5 ± 0 | – |"
    whole = {line.split(" | ")[0]: line for line in small.table(rows).splitlines()}
    assert whole["| exponential less it, all"].endswith("| 1.5 |")
    assert whole["| 2 less 1"].endswith("| – |")  # random directions do not learn


def test_the_best_on_validation_prompts_is_reported_on_test_prompts(small):
    contest, scale = small.prepare()
    row = small.measure((contest, scale), small.cases[0])
    dealt, lm = contest.deal(0, 1), contest.lm
    assert len({*dealt.learn.texts, *dealt.validation.texts, *dealt.test.texts}) == 1 + 3 + 4
    assert contest.deal(0, 2).learn.texts[:1] == dealt.learn.texts
    cmap = CausalMap(lm, dealt.learn, 1, 3)
    features = fit(cmap, Exponential(4, scale), progress=False).features

    def contrast(prompts, feature):
        taken = []
        for tokens in prompts.tokens:
            with steer(lm, features[feature]), torch.no_grad():
                logits = lm.model(torch.tensor([tokens])).logits[0, -1]
            taken.append((logits[contest.pair[0]] - logits[contest.pair[1]]).item())
        return sum(taken) / len(taken)

    best = max(range(4), key=lambda i: contrast(dealt.validation, i))
    assert row["validation"] == pytest.approx(contrast(dealt.validation, best), abs=1e-4)
    assert row["test"] == pytest.approx(contrast(dealt.test, best), abs=1e-4)


def test_multiplicity_is_that_of_the_features_over_the_threshold(small):
    settings = {k: v for k, v in vars(small).items() if k not in ("recipes", "numbers")}
    experiment = Multiplicity(
        **settings | {"threshold": -100.0, "recipe": "exponential", "number": 2, "shuffles": 1}
    )
    contest, scale = experiment.prepare()
    [case] = experiment.cases
    row = {**case, **experiment.measure((contest, scale), case)}
    assert row["hits"] == 4  # everything beats −100
    dealt = contest.deal(0, 2)
    cmap = CausalMap(contest.lm, dealt.learn, 1, 3)
    features = fit(cmap, Exponential(4, scale), progress=False).features
    _, each = contest.contrasts(dealt.test, features)
    assert row["add v"][0] == pytest.approx(sum(each) / 4, abs=1e-4)
    assert row["add v"][2] == pytest.approx(
        contest.contrasts(dealt.test, features.averaged("mean"))[1][0], abs=1e-4
    )
    _, validated = contest.contrasts(dealt.validation, features)
    best = max(range(4), key=validated.__getitem__)
    with ablate(contest.lm, features.V[best]):
        assert row["ablate v"][1] == pytest.approx(contest.plain(dealt.test), abs=1e-4)
    assert row["unsteered"] == pytest.approx(contest.plain(dealt.test), abs=1e-4)
    assert "| add v |" in experiment.table([row])
    assert experiment.picture([row]).startswith(b"\x89PNG")
    none = replace(experiment, threshold=100.0)
    row = {**none.cases[0], **none.measure((contest, scale), none.cases[0])}
    assert (row["hits"], row["tested"]) == (0, [])
    assert "| add v | – |" in none.table([row])


def test_depth_pushes_at_every_source_with_its_own_scale(small, tmp_path):
    settings = {k: v for k, v in vars(small).items() if k not in ("source", "target", "numbers")}
    experiment = Depth(**settings | {"sources": (0, 2), "horizon": 2, "number": 1, "shuffles": 1})
    rows = list(run(experiment, tmp_path / "out", progress=False))
    assert [(row["source"], row["recipe"]) for row in rows] == [
        (s, recipe) for s in (0, 2) for recipe in small.recipes
    ]
    assert len({row["scale"] for row in rows}) == 2
    lead = [a["test"] - b["test"] for a, b in zip(rows[::3], rows[2::3], strict=True)]
    assert [line.split(" | ")[-1] for line in experiment.table(rows).splitlines()[2:4]] == [
        f"{x:.3g} |" for x in lead
    ]
    with pytest.raises(MelboError, match="past layer 4"):
        replace(experiment, horizon=3).prepare()
