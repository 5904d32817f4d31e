import math

import pytest

from melbo.maths.statistics import interval


@pytest.mark.parametrize("score", [5.0, -3.0, 1e-9 + 1, 1e6])
@pytest.mark.parametrize("n", [2, 3, 10, 100])
def test_equal_scores_are_no_certainty(score, n):
    low, high = interval([score] * n)
    # with a share 1 − .05^(1/n) of other scores, all n are the same once in twenty times
    half = (1 - 0.05 ** (1 / n)) * abs(score)
    assert (low, high) == pytest.approx((score - half, score + half))
    assert low < score < high


def test_equal_scores_are_trusted_more_the_more_there_are():
    widths = [high - low for low, high in (interval([7.0] * n) for n in (2, 5, 20, 1000))]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] == pytest.approx(2 * 7 * 3 / 1000, rel=0.01)


@pytest.mark.parametrize("score", [5.0, -0.1, 1.5])
def test_one_score_gives_no_bounds(score):
    assert interval([score]) == (-math.inf, math.inf)


def test_equal_up_to_rounding_counts_as_equal():
    assert interval([0.1 + 0.2 + 1, 1.3])[1] > 1.9


def test_shares_keep_the_interval_of_wilson_even_for_one():
    assert interval([1.0]) == pytest.approx((0.2065, 1.0), abs=1e-4)
    assert interval([0.5, 0.5])[0] < 0.1


def test_scores_that_differ_keep_the_normal_interval():
    assert interval([5.0, 7.0, 9.0]) == pytest.approx((7 - 2.2632, 7 + 2.2632), abs=1e-4)
