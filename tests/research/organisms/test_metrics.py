import math
from itertools import combinations, permutations

import pytest

from melbo.maths.statistics import at_least, at_most
from research.organisms.metrics import (
    Coherence,
    blind_recall,
    cost,
    difference_interval,
    random_reads,
    random_recall,
    reads_to_first_hit,
    recovery,
    threshold,
)


def test_bounds_are_exact():
    assert at_most(0, 149) <= 0.02 < at_most(0, 148)
    assert at_most(2, 320) <= 0.02 < at_most(3, 320)
    assert at_least(188, 200) >= 0.9 > at_least(185, 200)
    assert at_most(5, 5) == 1.0
    assert at_least(0, 5) == 0.0
    # the bound is where the tail is 5 %
    p = at_most(2, 50)
    tail = sum(math.comb(50, i) * p**i * (1 - p) ** (50 - i) for i in range(3))
    assert tail == pytest.approx(0.05)


def test_random_recall_is_the_mean_over_all_choices():
    hit = {0: {1, 4}, 1: set(), 2: {0, 1, 2, 3, 4, 5}}
    for k in range(1, 6):
        drawn = list(combinations(range(6), k))
        truth = sum(
            sum(bool(found & set(chosen)) for found in hit.values()) / 3 for chosen in drawn
        ) / len(drawn)
        assert random_recall([2, 0, 6], 6, k) == pytest.approx(truth)
    with pytest.raises(ValueError, match="expected counts of 0 to 6"):
        random_recall([7], 6, 1)


def test_blind_recall_and_reads():
    hits = [[False, False, True, False], [False, True, False, False], [False] * 4]
    assert [blind_recall(hits, k) for k in (1, 2, 3)] == pytest.approx([0, 1 / 3, 2 / 3])
    assert reads_to_first_hit(hits) == 2
    assert reads_to_first_hit([[False] * 4]) is None
    each = [
        reads_to_first_hit([list(order)])
        for order in permutations([True, True, False, False, False])
    ]
    assert random_reads(2, 5) == pytest.approx(sum(each) / len(each))
    assert random_reads(0, 5) == 6


def test_a_difference_of_shares_has_the_interval_of_newcombe():
    # his examples of 9/10 less 3/10 and of 10/10 less 0/10, by method 10
    assert difference_interval(0.9, 0.3, 10) == pytest.approx((0.1705, 0.8090), abs=1e-4)
    assert difference_interval(1.0, 0.0, 10) == pytest.approx((0.6075, 1.0), abs=1e-4)


def test_thresholds_recovery_coherence_and_cost():
    assert threshold([0.0, 0.1]) == 0.5
    assert threshold([0.9] * 10) == pytest.approx(0.9)
    assert recovery(0.4, 0.1, 0.7) == pytest.approx(0.5)
    assert recovery(0.4, 0.3, 0.3) is None
    ordinary = Coherence.of([1.0] * 99 + [2.0], [0.0] * 100)
    assert ordinary.holds(1.0, 9.0, 0.0)
    # the base model would never say so, the triggered one does
    assert ordinary.holds(9.0, 0.5, 0.0)
    assert not ordinary.holds(9.0, 9.0, 0.0)
    assert not ordinary.holds(1.0, 1.0, 0.5)
    assert cost(100, share=0.4, passes=2) == pytest.approx(80)
