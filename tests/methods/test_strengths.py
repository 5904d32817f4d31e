"""Strengths of fits that are not negative, and first steps that are not finite."""

import pytest
import torch
from toys import directions, planted, recovery, smooth

from melbo import (
    CPE,
    Alike,
    Exponential,
    FunctionMap,
    Linear,
    Melbo,
    MelboError,
    ObjectiveHessian,
    ProjectedLinear,
    Quadratic,
    Random,
    fit,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("d", [32, 128])
def test_six_planted_factors_are_the_first_six_and_the_only_ones(d, seed, dtype):
    V, U = directions(6, d, 10 + seed, dtype), directions(6, d, 20 + seed, dtype)
    toy = planted(V, U, torch.expm1, dtype)
    method = Exponential(64, 4.0, orthogonalise="soft", max_steps=30, tol=0.0)
    features = fit(toy, method, progress=False).features
    first = features.alpha.square().argsort(descending=True)[:6]
    assert recovery(V, features.V[first], signed=True).min() > 0.99
    assert (features.alpha > 0).sum() == 6
    assert (features.alpha >= 0).all()


@pytest.mark.parametrize(
    "method",
    [
        Exponential(15, 1.0, orthogonalise="soft"),
        Exponential(12, 3.0, orthogonalise="polar"),
        Exponential(6, 1.0, beta=0.5),
        CPE(20, 1.0, max_steps=5),
        Random(30, 1.0),
        Melbo(6, 1.0, steps=10),
        Alike(4, 1.0, steps=10, like=(1.0,) * 12),
    ],
    ids=repr,
)
def test_no_strength_of_an_exponential_fit_is_negative(method):
    found = fit(smooth(12, 9), method, progress=False)
    assert (found.features.alpha >= 0).all()
    assert found.stats["explained"] > 0


def test_strengths_are_left_free_if_asked_for():
    settings = {"orthogonalise": "soft", "max_steps": 5}
    free = fit(smooth(12, 9), Exponential(30, 1.0, **settings, nonnegative=False), progress=False)
    kept = fit(smooth(12, 9), Exponential(30, 1.0, **settings), progress=False)
    assert (free.features.alpha < 0).any()
    assert free.stats["explained"] >= kept.stats["explained"] - 1e-9


METHODS = [
    Melbo(3, 50.0, steps=5),
    Melbo(3, 50.0, steps=5, batch_size=1),
    Alike(3, 50.0, steps=5, like=(1.0,) * 6),
    Exponential(3, 50.0),
    Exponential(3, 50.0, start="backward"),
]
AT_ZERO = [Quadratic(3, 50.0), Linear(3, 50.0), ProjectedLinear(3, 50.0), ObjectiveHessian(3, 50.0)]


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_first_step_whose_response_is_not_finite_is_refused(method):
    toy = FunctionMap(lambda t: t.exp().sub(1) * 1e38 * t, 6, 6)
    with pytest.raises(MelboError, match="not finite at scale 50: lower the scale"):
        fit(toy, method, progress=False)


@pytest.mark.parametrize("method", [*METHODS, *AT_ZERO], ids=repr)
def test_a_first_step_whose_gradient_is_not_finite_is_refused(method):
    # the square root of what is zero everywhere has a gradient of nan
    toy = FunctionMap(lambda t: t + t**2 + (0 * t.sum(-1, keepdim=True)).sqrt(), 6, 6)
    with pytest.raises(MelboError, match="not finite at scale 50|derivative at zero is not finite"):
        fit(toy, method, progress=False)


def test_batches_that_were_finished_are_kept():
    toy, calls = smooth(12, 9), 0
    fine = toy.fn

    def fn(theta):
        nonlocal calls
        calls += 1
        return fine(theta) + (torch.nan if 12 < calls < 15 else 0.0)

    method = Melbo(4, 1.0, steps=5, batch_size=2)
    found = fit(FunctionMap(fn, 12, 9, torch.float64), method, progress=False)
    assert len(found.features.V) in (2, 4)
    assert len(found.history) >= 1
