"""Draws as candidates."""

import pytest

from melbo import MelboError
from melbo.discovery.draws import TEMPERATURES, Drawn, Temperature


def test_temperatures_take_turns(lm, asked):
    found, cost = Temperature().candidates(lm, asked, 6, 3, False)
    assert found.temperatures == (0.5, 1.0, 1.5, 2.0, 0.5, 1.0)
    assert len(set(found.seeds)) == 6
    assert cost == 0
    assert found.describe(2) == {"kind": "draw", "temperature": 1.5, "seed": found.seeds[2]}
    more, _ = Temperature().candidates(lm, asked, 9, 3, False)
    assert more.only(range(6)) == found


def test_next_to_no_temperature_is_greedy_and_a_high_one_is_not(lm, asked):
    table = Drawn((1e-6, 50.0), (0, 1)).replies(lm, asked, 8, unsteered=True, progress=False)
    own, cold, hot = (
        [c.tokens for c in rows]
        for rows in (table.of("unsteered"), table.of("feature", 0), table.of("feature", 1))
    )
    assert cold == own
    assert hot != own


def test_equal_seeds_draw_differently_on_other_prompts_and_alike_on_the_same(lm, asked):
    twice = Drawn((5.0, 5.0), (4, 4)).replies(lm, asked, 8, unsteered=False, progress=False)
    assert [c.tokens for c in twice.of("feature", 0)] == [c.tokens for c in twice.of("feature", 1)]
    assert len({c.tokens[:1] for c in twice.of("feature", 0)}) > 1


@pytest.mark.parametrize(
    ("temperatures", "message"),
    [
        ((1.0,), "got 1 temperatures and 2 seeds"),
        ((0.0, 1.0), "temperature is 0, which is greedy"),
        ((1.0, -1.0), "temperature is -1.0"),
        ((1.0, float("nan")), "temperature is nan"),
    ],
)
def test_draws_that_cannot_be_made_are_refused(temperatures, message):
    with pytest.raises(MelboError, match=message):
        Drawn(temperatures, (0, 1))


def test_the_usual_temperatures():
    assert Temperature().temperatures == TEMPERATURES
