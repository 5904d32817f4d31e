import itertools
import math

import pytest
import torch
from toys import directions, planted

from melbo.maths import transcoder
from melbo.maths.linalg import unit
from melbo.maths.transcoder import exponential_factors, fit_strengths, kernel


@pytest.mark.parametrize("activation", ["linear", "quadratic", "exponential"])
def test_kernel_is_the_inner_product_of_the_derivative_tensors(activation):
    """Σ_k (1/k!) ⟨T_i^(k), T_j^(k)⟩; the k-th derivative of a factor is σ^(k)(0) u ⊗ v^⊗k."""
    V, U = directions(4, 5), directions(4, 3, 1)
    weights = {
        "linear": {1: 1.0},
        "quadratic": {2: 2**2 / 2},
        "exponential": {k: 1 / math.factorial(k) for k in range(1, 25)},
    }[activation]
    K = torch.zeros(4, 4, dtype=torch.float64)
    for i in range(4):
        for j in range(4):
            inner = sum(w * (V[i] @ V[j]) ** k for k, w in weights.items())
            K[i, j] = (U[i] @ U[j]) * inner
    assert torch.allclose(kernel(V, U, activation), K, atol=1e-12)


def test_strengths_minimise_the_loss_and_explained_is_b_kinv_b():
    V, U, b = directions(6, 9), directions(6, 7, 1), torch.linspace(1, 2, 6, dtype=torch.float64)
    found = fit_strengths(V, U, b, "exponential", ridge=0.0)
    K = kernel(V, U, "exponential")
    assert found.explained == pytest.approx((b @ torch.linalg.solve(K, b)).item(), rel=1e-10)
    for seed in range(10):
        other = found.alpha + 0.1 * directions(1, 6, seed)[0]
        assert 2 * other @ b - other @ K @ other < found.explained


def test_planted_strengths_are_recovered():
    V, U = directions(6, 40), directions(6, 30, 1)
    alpha = torch.linspace(1, 3, 6, dtype=torch.float64)
    toy = planted(V, alpha[:, None] * U, torch.expm1)
    b = (U * toy.value(V)).sum(-1)
    found = fit_strengths(V, U, b, "exponential")
    assert torch.allclose(found.alpha, alpha, rtol=1e-4)


def test_repeated_factors_share_their_strength_and_explain_no_more():
    V, U = directions(3, 9), directions(3, 7, 1)
    b = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    once = fit_strengths(V, U, b, "exponential")
    rows = [0, 1, 2, 0]
    twice = fit_strengths(V[rows], U[rows], b[rows], "exponential")
    assert twice.explained == pytest.approx(once.explained, rel=1e-4)
    assert twice.alpha[0].item() == pytest.approx(twice.alpha[3].item(), rel=1e-6)


def near_copies(seed, dtype=torch.float64):
    """Sixty-four factors near six planted ones, and what the planted ones do there."""
    V, U = directions(6, 48, seed), directions(6, 40, seed + 50)
    rows = torch.arange(64) % 6
    near = unit(V[rows] + 0.02 * directions(64, 48, seed + 100))
    return near.to(dtype), planted(V, U, torch.expm1).value(3 * near).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(3))
def test_strengths_that_may_not_be_negative_are_the_best_of_those(seed, dtype):
    V, D = near_copies(seed, dtype)
    found, free = exponential_factors(V, D), exponential_factors(V, D, nonnegative=False)
    assert (free.alpha < 0).any()
    assert (found.alpha >= 0).all()
    assert found.explained <= free.explained
    # Karush–Kuhn–Tucker: no factor is worth more, and those in use are worth no less
    K = kernel(V.double(), torch.nn.functional.normalize(D.double(), dim=-1), "exponential")
    worth = (D.double().norm(dim=-1) - K @ found.alpha.double()) / D.double().norm(dim=-1)
    assert worth.max() < 1e-4
    assert worth[found.alpha > 0].abs().max() < 1e-4


def test_nonnegative_strengths_equal_those_of_every_set_of_factors_tried():
    V, U, b = unit(directions(7, 9) + 0.4), unit(directions(7, 7, 1) + 0.4), directions(1, 7, 2)[0]
    K = kernel(V, U, "exponential")
    best = 0.0
    for chosen in itertools.product([False, True], repeat=7):
        rows = torch.tensor(chosen).nonzero()[:, 0]
        alpha = torch.linalg.solve(K[rows][:, rows], b[rows])
        if (alpha >= 0).all():
            best = max(best, (alpha @ b[rows]).item())
    found = fit_strengths(V, U, b, "exponential", ridge=0.0, nonnegative=True)
    assert 0 < (found.alpha > 0).sum() < 7
    assert found.explained == pytest.approx(best, rel=1e-10)


@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_of_repeats_one_has_all_the_strength(noise):
    V, D = directions(3, 9), 5 * directions(3, 7, 1)
    rows = [0, 1, 2, 0, 0, 1]
    repeated = unit(V[rows] + noise * directions(6, 9, 2))
    once = exponential_factors(V, D)
    found = exponential_factors(repeated, D[rows])
    assert (found.alpha > 0).sum() == 3
    assert found.alpha[[0, 3, 4]].sum().item() == pytest.approx(once.alpha[0].item(), rel=1e-5)
    assert found.explained == pytest.approx(once.explained, rel=1e-5)


def test_least_squares_that_go_in_circles_leave_strengths_that_are_not_negative(monkeypatch):
    def circles(*args, **kwargs):
        raise RuntimeError("Maximum number of iterations reached.")

    V, D = near_copies(0)
    best = exponential_factors(V, D).explained
    monkeypatch.setattr(transcoder, "nnls", circles)
    found = exponential_factors(V, D)
    assert (found.alpha >= 0).all()
    assert 0 < found.explained <= best


def test_what_is_not_finite_stays_so():
    V, D = near_copies(0)
    D[3] = torch.nan
    assert exponential_factors(V, D).alpha.isnan().all()
