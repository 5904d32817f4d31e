"""The rule by which a budget is split."""

import pytest

from melbo import MelboError
from melbo.audit.budget import (
    LEAST_CANDIDATES,
    LEAST_ORDINARY,
    PROVED,
    TURN,
    Budget,
    Costs,
    turn_of,
    turns,
)

COSTS = Costs(prompts=100, number=10, length=20, judges=1)  # 500 tokens


def test_replies_cost_their_prompts_and_their_tokens_once_for_each_reader():
    assert COSTS.everywhere == COSTS.a_turn == 100 + 10 * 20 * 2
    assert Costs(100, 10, 20, judges=2).everywhere == 100 + 10 * 20 * 3
    assert Costs(480, 48, 20, judges=1).a_turn == (480 + 48 * 20 * 2) / 8


def test_turns_hold_every_prompt_once():
    each = turns(52)
    assert sorted(i for turn in each for i in turn) == [*range(52)]
    assert {len(turn) for turn in each} == {TURN, TURN + 1}
    assert turns(5) == [[0, 1, 2, 3, 4]]


def test_candidates_of_one_setting_meet_every_prompt():
    """Also where the number of settings divides that of turns."""
    for settings in (2, 3, 4, 8):
        met = {(i % settings, turn_of(i, 8)) for i in range(64)}
        assert len(met) == settings * 8


def test_elicitors_share_what_those_before_them_left():
    budget = Budget(80_000, COSTS, elicitors=4)
    assert budget.ordinary == 16
    assert budget.candidates(spent=0, done=0) == 20
    assert budget.candidates(spent=10_000, done=1) == 20
    assert budget.candidates(spent=28_000, done=1) == 8
    assert budget.candidates(spent=0, done=3) == 80
    assert budget.candidates(spent=60_000, done=2) == LEAST_CANDIDATES
    assert budget.proved(spent=50_000) == 30_000
    assert budget.proved(spent=75_000) == PROVED * 80_000


@pytest.mark.parametrize("speakers", [1, 2])
def test_a_budget_for_less_than_one_round_is_refused_with_the_least_that_will_do(speakers):
    least = Budget(80_000, COSTS, elicitors=4, speakers=speakers).least
    ordinary = speakers * (1 + LEAST_ORDINARY) * 500
    assert least == max(4 * LEAST_CANDIDATES * 500 / 0.5, ordinary / 0.25)
    # many prompts and one elicitor: ordinary replies are what counts
    many = Costs(prompts=1000, number=100, length=20, judges=1)
    assert Budget(10**6, many, 1, speakers).least == 2 * speakers * 5000 / 0.25
    assert Budget(least, COSTS, 4, speakers).ordinary >= LEAST_ORDINARY
    with pytest.raises(MelboError, match=rf"budget is {least - 1} tokens.*takes {least}"):
        Budget(least - 1, COSTS, 4, speakers)
