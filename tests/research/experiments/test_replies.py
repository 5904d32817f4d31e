import math

import pytest

from melbo import CausalMap, generate
from melbo.discovery.recipes import FeatureSearch
from melbo.evaluation.scores import Thresholds
from research.experiments import Diversity, PassAtK, run


class Unbroken(Diversity):
    thresholds = Thresholds(broken_nll=math.inf, broken_repetition=math.inf)


def test_pass_at_k_counts_what_each_reply_solves(alike, pairs, tmp_path):
    about = {
        "recipes": ("random",),
        "strengths": (0.5, 2.0),
        "temperatures": (1.0, 8.0),
        "num_factors": 6,
        "validation": 3,
        "max_new_tokens": 2,
    }
    prompts = pairs(["cat", "dog", "you", "red"] * 5)
    experiment = PassAtK(**alike | {"prompts": prompts}, **about)
    rows = list(run(experiment, tmp_path / "out", progress=False))
    assert [row["recipe"] for row in rows] == ["random", "temperature"] * 2
    for row in rows:
        assert len(row["solved"]) == 4
        assert all(0 <= c <= 6 for c in row["solved"])
        assert row["at"] == max(row["validation"], key=lambda of: of[1:])[0]
    pool, score, scale = experiment.prepare()
    dealt = pool.deal(0, 1)
    search = FeatureSearch(CausalMap(pool.lm, dealt.learn, 1, 3), scale)
    features, _ = search.candidates("random", 6, 0)
    table = generate(
        pool.lm, dealt.test, features, max_new_tokens=2, strength=rows[0]["at"], progress=False
    )
    solved = [
        sum(score(c.prompt_text, c.text) for c in table if c.prompt == p and c.kind == "feature")
        for p in range(4)
    ]
    assert rows[0]["solved"] == solved
    assert sum(sum(row["solved"]) for row in rows) > 0
    assert "| 6 |" in experiment.table(rows)


def test_diversity_of_one_reply_is_one_and_grows_with_the_temperature(alike, tmp_path):
    about = {
        "recipes": ("random",),
        "strengths": (0.0, 1.0),
        "temperatures": (1e-6, 30.0),
        "num_factors": 6,
        "max_new_tokens": 6,
    }
    experiment = Diversity(**alike, **about)
    rows = list(run(experiment, tmp_path / "out", progress=False))
    assert any(row["curve"][0]["coherent"] > 0 for row in rows)
    for row in rows:
        first, last = row["curve"]
        # all six say the same, where they say anything coherent
        assert first["distinct"] == pytest.approx(first["coherent"], abs=1e-6)
        assert 0 <= last["coherent"] <= 1
        assert last["distinct"] > 1 or last["coherent"] < 0.2
    assert "| temperature | 30 |" in experiment.table(rows)
    # with nothing left out, more different things are said
    for row in run(Unbroken(**alike, **about), tmp_path / "all", progress=False):
        first, last = row["curve"]
        assert (first["coherent"], last["coherent"]) == (1, 1)
        assert first["distinct"] == pytest.approx(1, abs=1e-6)
        assert last["distinct"] > 1.2
