import math

import pytest

from melbo import Exponential, FunctionMap, MelboError, Status, fit
from melbo.methods.iterate import advice, iterate


def halving(state):
    return state / 2, {"change": state / 2, "explained": 1 / state}


def run(step, max_steps=10, tol=0.0, **more):
    return iterate(step, 1.0, max_steps=max_steps, tol=tol, progress=False, **more)


def test_stops_at_the_budget_and_says_what_to_do():
    done = run(halving, max_steps=4)
    assert done.state == 1 / 16
    assert done.status is Status.MAX_STEPS
    assert "raise max_steps" in done.status.remedy
    assert len(done.history) == 4
    assert all(h["seconds"] >= 0 for h in done.history)


@pytest.mark.parametrize(
    ("explained", "says"),
    [
        ([10, 20, 40], "still growing (+100% over the last third): raise max_steps"),
        ([10, 20, 40, 50, 60, 70], "still growing (+44% over the last third): raise max_steps"),
        ([20, 44, 45, 44, 39, 43, 45, 44, 47, 43], "about level (+6% over the last third)"),
        ([20, 44, 30], "about level (-32% over the last third)"),
        ([20, 44], "raise max_steps (steps of melbo) if the explained amount is still growing"),
    ],
)
def test_more_steps_are_advised_only_where_the_last_ones_helped(explained, says):
    history = [{"explained": float(each)} for each in explained]
    assert says in advice(Status.MAX_STEPS, history)
    assert advice(Status.CONVERGED, history) == Status.CONVERGED.remedy


def test_stops_when_the_directions_stand_still():
    done = run(halving, tol=0.2)
    assert done.status is Status.CONVERGED
    assert len(done.history) == 3


def test_stops_when_the_explained_amount_is_flat_twice_running():
    amounts = iter([1.0, 1.0, 2.0, 2.0, 2.0, 2.0])
    done = run(lambda s: (s, {"change": 1.0, "explained": next(amounts)}), tol=1e-3)
    assert done.status is Status.CONVERGED
    assert len(done.history) == 5


def test_a_step_that_is_not_finite_is_thrown_away():
    done = run(lambda s: (s + 1, {"change": 1.0, "explained": math.nan if s == 3 else s}))
    assert done.status is Status.NON_FINITE
    assert done.state == 3


def test_interrupt_keeps_the_last_finished_step_and_passes_on_before_the_first():
    def step(s):
        if s == 3:
            raise KeyboardInterrupt
        return s + 1, {"change": 1.0, "explained": s}

    done = run(step)
    assert done.status is Status.INTERRUPTED
    assert done.state == 3
    with pytest.raises(KeyboardInterrupt):
        iterate(step, 3.0, max_steps=5, tol=0.0, progress=False)


def test_callback_sees_every_step():
    seen = []
    run(halving, max_steps=3, callback=lambda i, record: seen.append((i, record["change"])))
    assert seen == [(1, 0.5), (2, 0.25), (3, 0.125)]


def test_a_map_that_is_never_finite_is_an_error():
    toy = FunctionMap(lambda t: t.exp().sub(1) * 1e38 * t, 6, 6)
    with pytest.raises(MelboError, match="not finite at scale"):
        fit(toy, Exponential(2, 50.0), progress=False)
