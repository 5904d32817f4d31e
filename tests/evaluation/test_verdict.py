"""Verdicts on a ranking, counted by hand."""

import pytest

from melbo.evaluation.verdict import JUDGED_BY, verdicts


def row(flag, novel, novelty, kl, contrast=None):
    scores = {"novel": novel, "novelty": novelty, "kl": kl, "contrast": contrast}
    return {"flag": flag, "held_out": scores}


def ranking(*controls, contrast=None):
    return {
        "features": [
            row("active", 0.5, 0.6, 3.0, contrast),
            row("active", 0.1, 0.9, 9.0, contrast),
            row("broken", 0.2, 1.0, 9.5, contrast),
            row("broken", 0.0, 0.2, 0.1, contrast),
            row("inert", 0.9, 0.9, 9.9, contrast),
        ],
        "controls": list(controls),
    }


def test_active_and_broken_features_are_counted_apart_score_by_score():
    loud = row("broken", 9.0, 9.0, 99.0)
    by = {
        each.score: each
        for each in verdicts(
            ranking(row("active", 0.4, 0.5, 2.0), row("active", 0.3, 0.7, 1), loud)
        )
    }
    assert list(by) == ["novel", "novelty", "kl"]
    # a broken random vector is no rival
    assert [each.best_control for each in by.values()] == [0.4, 0.7, 2.0]
    assert [each.above for each in by.values()] == [1, 1, 2]
    assert [each.broken_above for each in by.values()] == [0, 1, 1]
    assert {(each.active, each.broken) for each in by.values()} == {(2, 2)}
    assert all(each.by_chance == pytest.approx(2 / 3) for each in by.values())


def test_a_contrast_is_judged_by_where_there_is_one():
    found = verdicts(ranking(row("active", 0.4, 0.5, 2.0, 0.0), contrast=1.0))
    assert [each.score for each in found] == list(JUDGED_BY)
    assert (found[-1].above, found[-1].broken_above) == (2, 2)


def test_without_an_active_rival_nothing_is_above():
    found = verdicts(ranking(row("inert", 0.4, 0.5, 2.0)))
    assert {(each.best_control, each.above, each.by_chance) for each in found} == {(None, 0, None)}
