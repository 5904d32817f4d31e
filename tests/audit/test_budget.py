"""The rule by which a budget is split."""

import pytest

from melbo import MelboError
from melbo.audit.budget import Budget, Costs

COSTS = Costs(prompts=100, number=10, length=20, judges=1)  # 500 tokens a candidate


def test_a_candidate_costs_its_prompts_and_its_replies_once_for_each_reader():
    assert COSTS.candidate == 100 + 10 * 20 * 2
    assert Costs(100, 10, 20, judges=2).candidate == 100 + 10 * 20 * 3


def test_elicitors_share_what_those_before_them_left():
    budget = Budget(80_000, COSTS, elicitors=4)
    assert budget.ordinary == 16
    assert budget.candidates(spent=0, done=0) == 20
    assert budget.candidates(spent=10_000, done=1) == 20
    assert budget.candidates(spent=28_000, done=1) == 8
    assert budget.candidates(spent=0, done=3) == 80
    assert budget.candidates(spent=60_000, done=2) == 4
    assert budget.proved == 32_000


def test_a_budget_for_less_than_one_round_is_refused_with_the_least_that_will_do():
    least = Budget(80_000, COSTS, elicitors=4).least
    assert least == max(4 * 4 * 500 / 0.5, 4 * 500 / 0.1)
    assert Budget(least, COSTS, 4).ordinary == 4
    with pytest.raises(MelboError, match=rf"budget is {least - 1} tokens.*takes {least}"):
        Budget(least - 1, COSTS, 4)
