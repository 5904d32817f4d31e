import json
import math
from itertools import pairwise

import pytest
import torch
from cases import tiny_model

from melbo import CausalMap, MelboError, Prompts, Random, fit, generate, steer
from melbo.evaluation.asking import ask_contrasts, ask_replies
from melbo.evaluation.halving import plan, select
from melbo.evaluation.scorers import matches
from melbo.features.generate import first_tokens
from melbo.maths.statistics import interval


def noisy(num, best, seed, noise=0.3):
    """Noisy scores of candidates of quality up to .5, one of .8; and the list of what was asked."""
    g = torch.Generator().manual_seed(seed)
    quality = 0.5 * torch.rand(num, generator=g)
    quality[best] = 0.8
    asked = []

    def ask(which, pairs):
        asked.extend((which, *pair) for pair in pairs)
        return [
            (0.0 if who is None else quality[who].item())
            + noise * torch.randn(1, generator=g).item()
            for who, _ in pairs
        ]

    return ask, asked


def test_the_best_of_128_is_found_at_a_quarter_of_the_full_budget():
    found, spent = 0, []
    for seed in range(60):
        ask, asked = noisy(128, seed * 2 % 128, seed)
        chosen = select(128, ask, 64, 16, 128 * 64 // 4 + 32, progress=False)
        found += chosen.best == seed * 2 % 128
        spent.append(len(asked))
        assert chosen.completions == len(asked) <= 128 * 64 // 4 + 32
    print(f"found {found} of 60 with {max(spent)} of {128 * 64} completions")
    assert found >= 54


def test_yes_or_no_is_harder_and_still_far_above_chance():
    g = torch.Generator().manual_seed(0)
    found = 0
    for _ in range(40):
        p = torch.full((128,), 0.3)
        p[17] = 0.7

        def ask(which, pairs, p=p):
            return [
                float(torch.rand(1, generator=g) < (0.3 if who is None else p[who]))
                for who, _ in pairs
            ]

        found += select(128, ask, 64, 8, 2048 + 16, progress=False).best == 17
    print(f"found {found} of 40")
    assert found >= 20


@pytest.mark.parametrize(
    ("num", "validation", "test", "budget"),
    [(128, 64, 16, 2080), (7, 3, 2, 40), (5, 100, 1, 12), (1, 4, 2, 9), (64, 8, 4, 72)],
)
def test_a_plan_keeps_to_its_budget_and_halves(num, validation, test, budget):
    found = plan(num, validation, test, budget)
    assert found.completions <= budget
    candidates, prompts = zip(*found.rounds, strict=True)
    assert candidates[0] == num
    assert all(b == -(-a // 2) for a, b in pairwise(candidates))
    assert list(prompts) == sorted(set(prompts))
    assert prompts[-1] <= validation


def test_a_budget_too_small_for_a_round_is_refused():
    with pytest.raises(
        MelboError, match="a budget of 20 completions is too small: 16 candidates.* take 24"
    ):
        plan(16, 8, 4, 20)
    with pytest.raises(MelboError, match="0 test prompts"):
        select(2, lambda which, pairs: [0.0] * len(pairs), 4, 0, 100, progress=False)


def test_validation_prompts_and_test_prompts_are_told_apart():
    """A score that is high on validation only: what is reported is the test's."""

    def ask(which, pairs):
        return [float(who == 3) if which == "validation" else 0.25 for who, _ in pairs]

    chosen = select(8, ask, 4, 4, 100, progress=False)
    assert (chosen.best, chosen.validation, chosen.test, chosen.unsteered) == (3, 1.0, 0.25, 0.25)
    assert sorted(chosen.order) == list(range(8))


def test_what_cannot_be_scored_is_told_and_the_rest_goes_on():
    def ask(which, pairs):
        return [
            "ValueError: no" if who == 1 else math.nan if (who, p) == (2, 0) else float(who == 2)
            for who, p in pairs
        ]

    chosen = select(4, ask, 4, 2, 40, progress=False)
    assert chosen.best == 2
    assert {
        "feature": 2,
        "set": "validation",
        "prompt": 0,
        "why": "the score is nan",
    } in chosen.failed
    assert all(f["why"] == "ValueError: no" for f in chosen.failed if f["feature"] == 1)
    with pytest.raises(MelboError, match="no candidate could be scored .ValueError"):
        select(2, lambda which, pairs: ["ValueError: x"] * len(pairs), 2, 2, 20, progress=False)


def test_a_score_that_fails_where_it_would_be_low_does_not_win():
    def ask(which, pairs):
        return [
            (1.0 if p == 0 else "ValueError: low") if who == 0 else 0.9 if who == 1 else 0.1
            for who, p in pairs
        ]

    assert select(4, ask, 8, 2, 40, progress=False).best == 1


def test_ties_are_not_won_by_place():
    winners = [
        select(n, lambda which, pairs: [0.0] * len(pairs), 4, 2, 40 * n, progress=False).best
        for n in range(8, 16)
    ]
    assert len(set(winners)) > 3


def test_another_budget_compares_candidates_on_the_same_prompts(tmp_path):
    """Survivors of an earlier, shorter search are judged by no more prompts than the others."""
    values = {0: [0.5] * 8, 1: [0.6, 0.6, 0.6, 0.6, 0.0, 0.0, 0.0, 0.0], 2: [0.1] * 8, 3: [0.1] * 8}

    def ask(which, pairs):
        return [0.0 if who is None else values[who][p] for who, p in pairs]

    select(4, ask, 8, 2, 24, tmp_path, progress=False)
    again = select(4, ask, 8, 2, 400, tmp_path, progress=False)
    assert again == select(4, ask, 8, 2, 400, progress=False)


def test_it_goes_on_where_it_was_broken_off(tmp_path):
    ask, asked = noisy(16, 5, 0, noise=0.0)
    left = 20

    def breaks(which, pairs):
        nonlocal left
        left -= len(pairs)
        if left < 0:
            raise KeyboardInterrupt
        return ask(which, pairs)

    with pytest.raises(KeyboardInterrupt):
        select(16, breaks, 8, 2, 100, tmp_path, "key", progress=False)
    once = list(asked)
    with (tmp_path / "selection.jsonl").open("a") as file:
        file.write('{"set": "vali')  # cut
    chosen = select(16, ask, 8, 2, 100, tmp_path, "key", progress=False)
    assert chosen.best == 5
    assert len(once) > 0
    assert len(asked) == len(set(asked)) == chosen.completions
    assert json.loads((tmp_path / "selection.json").read_text())["best"] == 5
    with pytest.raises(MelboError, match="scores of another selection"):
        select(16, ask, 8, 2, 100, tmp_path, "other", progress=False)


def test_wilson_interval():
    assert interval([1.0] * 8 + [0.0] * 2) == pytest.approx(
        (0.4902, 0.9433), abs=1e-4
    )  # as in the tables
    assert interval([0.0] * 10)[0] == 0
    low, high = interval([5.0, 7.0, 9.0])
    assert (low + high) / 2 == pytest.approx(7)
    assert high - low == pytest.approx(2 * 1.96 * 2 / 3**0.5, rel=1e-3)


@pytest.fixture(scope="module")
def world():
    lm = tiny_model("llama", torch.float32)
    features = fit(
        CausalMap(lm, Prompts.text(lm, ["Tell me how to bake a cake"]), 1, 3),
        Random(4, 20.0),
        progress=False,
    ).features
    return (
        lm,
        features,
        {
            "validation": Prompts.text(lm, ["it is a dog", "she and he ?"]),
            "test": Prompts.text(lm, ["what should you do"]),
        },
    )


def test_asked_replies_are_scored_as_generate_says(world):
    lm, features, sets = world
    said = {}

    def score(prompt, reply):
        said[prompt, reply] = len(reply)
        return len(reply)

    ask = ask_replies(lm, features, sets, score, max_new_tokens=4, strength=0.5)
    pairs = [(2, 0), (None, 1), (0, 1)]
    scores = ask("validation", pairs)
    table = generate(
        lm, sets["validation"], features, max_new_tokens=4, strength=0.5, progress=False
    )
    texts = {(c.feature, c.prompt): c.text for c in table}
    assert scores == [len(texts[pair]) for pair in pairs]
    assert ask_replies(lm, features, sets, lambda p, r: 1 / 0)("test", [(0, 0)]) == [
        "ZeroDivisionError: division by zero"
    ]


def test_asked_contrasts_are_the_difference_of_logits(world):
    lm, features, sets = world
    a, b = first_tokens(lm, ("yes", "no"))
    found = ask_contrasts(lm, features, sets, ("yes", "no"))("test", [(1, 0), (None, 0)])
    ids = torch.tensor([sets["test"].tokens[0]])
    with torch.no_grad():
        plain = lm.model(ids).logits[0, -1]
        with steer(lm, features[1]):
            steered = lm.model(ids).logits[0, -1]
    assert found == pytest.approx([(x[a] - x[b]).item() for x in (steered, plain)], abs=1e-4)


def test_the_same_prompt_in_both_sets_is_refused(world):
    lm, features, sets = world
    with pytest.raises(MelboError, match="one of the validation prompts"):
        ask_replies(
            lm,
            features,
            {"validation": sets["validation"], "test": sets["validation"][1]},
            matches("x"),
        )
