"""The rule by which a budget is split."""

import pytest

from melbo import MelboError
from melbo.audit.budget import (
    ELICITED,
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
MANY = Costs(prompts=1000, number=100, length=20, judges=1)  # 5000 tokens, 16 turns


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
    budget = Budget(80_000, COSTS, given=4)
    assert budget.ordinary == 16
    assert budget.candidates(spent=0, done=0) == 16
    assert budget.candidates(spent=8_000, done=1) == 16
    assert budget.candidates(spent=20_000, done=1) == 8
    assert budget.candidates(spent=0, done=3) == 64
    assert budget.candidates(spent=60_000, done=2) == LEAST_CANDIDATES
    assert budget.proved(spent=40_000) == 40_000
    assert budget.proved(spent=75_000) == PROVED * 80_000


@pytest.mark.parametrize("speakers", [1, 2])
def test_a_small_budget_goes_to_the_first_elicitors(speakers):
    ordinary, a_round = speakers * (1 + LEAST_ORDINARY) * 5000, LEAST_CANDIDATES * MANY.a_turn
    assert Budget(80_000, MANY, 4, speakers).elicitors == 4
    for n in (1, 2, 3, 4):
        least = Budget(80_000, MANY, 4, speakers).least(n)
        assert least == pytest.approx((ordinary + n * a_round) / (1 - PROVED), abs=1)
        small = Budget(least, MANY, 4, speakers)
        assert (small.elicitors, small.ordinary) == (n, LEAST_ORDINARY)
        assert small.candidates(0, 0) == LEAST_CANDIDATES
        spent = ordinary + n * a_round
        assert spent + small.proved(spent) <= least + 1
    with pytest.raises(MelboError, match=r"budget is 100 tokens.*take \d+: raise the budget"):
        Budget(100, MANY, 4, speakers)


def test_the_proof_of_one_theme_is_always_paid_for():
    budget = Budget(60_000, MANY, given=3, a_proof=30_000)
    assert budget.least(1) == 10_000 + LEAST_CANDIDATES * MANY.a_turn + 30_000
    assert budget.proved(spent=45_000) == 30_000
    assert budget.candidates(0, 2) == 2 * (int((30_000 - 10_000) / MANY.a_turn) // 2)


def test_many_candidates_take_two_fifths_of_the_tokens_at_most():
    assert Budget(80_000, COSTS, given=10).least(10) == 10 * LEAST_CANDIDATES * 500 / ELICITED


def test_ordinary_replies_to_many_prompts_leave_the_elicitors_less():
    budget = Budget(25_000, MANY, given=1)
    assert budget.candidates(0, 0) == 2 * (int((15_000 - 10_000) / MANY.a_turn) // 2)
