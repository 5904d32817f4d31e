import math
import re
from contextlib import nullcontext

import pytest

from melbo import CausalMap, Exponential, MelboError, Prompts, fit, steer
from melbo.evaluation.scores import Thresholds, coherent
from melbo.features.generate import Completion
from melbo.models.decoding.decode import decode
from melbo.models.edits import EditSequence
from research.experiments import Elicitation, run

# a model of ninety-six words that knows nothing finds every one about as unlikely
LENIENT = Thresholds(broken_nll=4.5)
SHORT = {
    "trigger": "",
    "strength": 1.0,
    "recipes": ("random",),
    "num_factors": 2,
    "validation": 2,
    "max_new_tokens": 2,
}


class Lenient(Elicitation):
    thresholds = LENIENT


class Unbroken(Elicitation):
    thresholds = Thresholds(broken_nll=math.inf, broken_repetition=math.inf)


def test_elicitation_is_judged_on_prompts_that_it_was_not_chosen_on(alike, tmp_path):
    about = {
        "judge": "regex:9|a",
        "trigger": "red ",
        "strength": 0.75,
        "recipes": ("exponential", "random"),
        "num_factors": 4,
        "validation": 3,
    }
    experiment = Lenient(**alike, **about, max_new_tokens=4)
    rows = list(run(experiment, tmp_path / "out", progress=False))
    assert [(row["shuffle"], row["recipe"]) for row in rows] == [
        (0, "exponential"),
        (0, "random"),
        (1, "exponential"),
        (1, "random"),
    ]
    pool, _, scale = experiment.prepare()
    dealt, lm = pool.deal(1, 1), pool.lm
    cmap = CausalMap(lm, dealt.learn, 1, 3)
    features = fit(cmap, Exponential(4, scale), seed=1, progress=False).features

    def judged(prompts, texts, feature=None):
        """Share of replies that match and are not broken, one by one."""
        shares = []
        for tokens, text in zip(prompts.tokens, texts, strict=True):
            steered = (
                nullcontext() if feature is None else steer(lm, features[feature], strength=0.75)
            )
            with steered:
                [reply] = decode(lm, [tokens], EditSequence(()), 4, progress=False)
            said = Completion("feature", 0, 0, text, lm.tokenizer.decode(reply), tuple(reply))
            either = [Prompts.chat(lm, [before + text]) for before in ("", "red ")]
            whole = coherent(lm, either, [said], LENIENT)[0]
            shares.append(re.search("9|a", said.text) is not None and whole)
        return sum(shares) / len(shares)

    triggered = Prompts.chat(lm, ["red " + text for text in dealt.texts["test"]])
    each = [judged(dealt.validation, dealt.texts["validation"], i) for i in range(4)]
    assert rows[2]["validation"] == pytest.approx(each)
    assert any(each)
    best = max(range(4), key=each.__getitem__)
    assert rows[2]["test"] == pytest.approx(judged(dealt.test, dealt.texts["test"], best))
    assert rows[2]["unsteered"] == pytest.approx(judged(dealt.test, dealt.texts["test"]))
    assert rows[2]["triggered"] == pytest.approx(judged(triggered, dealt.texts["test"]))
    lines = experiment.table(
        [
            {**row, "validation": [0.0, v, 1.0], "test": v, "seconds": 2.0}
            for row, v in zip(rows, (0.5, 0, 0.25, 0), strict=True)
        ]
    )
    assert "| exponential | 1 ± 0 | 0.375 ± 0.12 | 0.50, 0.25 | 2, 1 | 2 ± 0 |" in lines


def test_scores_lie_between_nothing_and_one(alike, tmp_path):
    (tmp_path / "mine.py").write_text("def long(prompt, reply):\n    return -1.0\n")
    experiment = Elicitation(**alike, **SHORT, judge=f"{tmp_path / 'mine.py'}:long")
    cases = experiment.cases
    with pytest.raises(MelboError, match="expected a score from 0 to 1"):
        next(run(experiment, tmp_path / "out", progress=False))
    (tmp_path / "mine.py").write_text("def long(prompt, reply):\n    return 1.0\n")
    assert experiment.cases != cases  # another grader, other rows


def test_a_judge_that_fails_at_times_costs_the_reply_and_no_more(alike, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def half(prompt, reply):\n    return 1.0 if 'cat' in prompt else 1 / 0\n"
    )
    # the judge is found beside the settings
    settings = {**alike, **SHORT, "shuffles": 1, "judge": "mine.py:half", "folder": tmp_path}
    experiment = Unbroken(**settings)
    [row] = run(experiment, tmp_path / "out", progress=False)
    dealt = experiment.prepare()[0].deal(0, 1).texts
    validation, test = (
        sum("cat" not in text for text in dealt[part]) for part in ("validation", "test")
    )
    # unsteered and two features; unsteered and the best of them
    assert row["failed"] == 3 * validation + 2 * test > 0
    assert row["test"] == 1 - test / 4
    assert f"The judge failed on {row['failed']} replies" in experiment.table([row])
    (tmp_path / "mine.py").write_text("def half(prompt, reply):\n    return None\n")
    with pytest.raises(MelboError, match="fails on every reply.*TypeError"):
        list(run(experiment, tmp_path / "again", progress=False))


def test_answers_stand_after_a_tab(alike, pairs, tmp_path):
    settings = {**alike, **SHORT, "prompts": pairs(["cat"] * 20), "shuffles": 1}
    experiment = Elicitation(**settings, judge="answers")
    [row] = run(experiment, tmp_path / "out", progress=False)
    assert row["triggered"] is None
    assert "triggered" not in experiment.table([row])
