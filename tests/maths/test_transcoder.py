import math

import pytest
import torch
from toys import directions, planted

from melbo.maths.transcoder import fit_strengths, kernel


@pytest.mark.parametrize("activation", ["linear", "quadratic", "exponential"])
def test_kernel_is_the_inner_product_of_the_derivative_tensors(activation):
    """Σ_k (1/k!) ⟨T_i^(k), T_j^(k)⟩, where the k-th derivative of a factor is u ⊗ v^⊗k.

    The one term of the quadratic transcoder has weight 1 (docs/method.md §2).
    """
    V, U = directions(4, 5), directions(4, 3, 1)
    weights = {
        "linear": {1: 1.0},
        "quadratic": {2: 1.0},
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
