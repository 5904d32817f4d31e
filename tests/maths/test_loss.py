"""b, K, α and explained amount against the loss itself, written out tensor by tensor."""

import math

import pytest
import torch
from toys import directions

from melbo import Exponential, FunctionMap, Linear, Quadratic, fit
from melbo.maths.linalg import unit
from melbo.maths.transcoder import fit_strengths, kernel

# the series of eˣ − 1 ends beyond: 1/11! is 2.5e-8
ORDERS = range(1, 11)
COMPARED = {"linear": (1,), "quadratic": (2,), "exponential": ORDERS}
SIGMA = {"linear": lambda x: x, "quadratic": lambda x: x**2, "exponential": torch.expm1}
SMOOTH = {
    "sines": lambda x: torch.sin(x) + 0.4 * x**2,
    "tanh": lambda x: 2 * torch.tanh(x / 2 + 0.3) - 2 * math.tanh(0.3),
    "exponential": torch.expm1,
    "polynomial": lambda x: x - 0.7 * x**2 + 0.2 * x**3,
}
R = 0.6


def derivatives(curve):
    """Derivatives of orders 1 to 10 of a scalar function at zero, by nested reverse mode."""
    x = torch.zeros((), dtype=torch.float64, requires_grad=True)
    value, found = curve(x), []
    for _ in ORDERS:
        if value.requires_grad:
            value = torch.autograd.grad(value, x, create_graph=True)[0]
        else:
            value = torch.zeros_like(x)
        found.append(value.item())
    return found


def tensors(curve, strengths, W, U, highest=10):
    """Derivative tensors ``[d_target, 4, 4, …]`` at zero of Σ strength · curve(⟨w, θ⟩) u."""
    found, power = [], torch.ones(len(W), 1, dtype=torch.float64)
    for slope in derivatives(curve)[:highest]:
        power = (power[:, :, None] * W[:, None, :]).flatten(1)
        found.append(torch.einsum("m,mt,mk->tk", slope * strengths, U, power))
    return found


def loss(truth, alpha, V, U, activation):
    """Σ 1/k! ‖R^k T^(k) − T̂^(k)‖² over the orders that the activation has."""
    fitted = tensors(SIGMA[activation], alpha, V, U, max(COMPARED[activation]))
    return sum(
        (R**k * truth[k - 1] - fitted[k - 1]).square().sum().item() / math.factorial(k)
        for k in COMPARED[activation]
    )


def quadratic_form(value, m):
    """L(0), b and K of L = const − 2αᵀb + αᵀKα, from values of L."""
    eye = torch.eye(m, dtype=torch.float64)
    start, ones = value(0 * eye[0]), [value(e) for e in eye]
    pairs = [value(a + b) - ones[i] - ones[j] + start for i, a in enumerate(eye)
             for j, b in enumerate(eye)]  # fmt: skip
    K = torch.tensor(pairs, dtype=torch.float64).view(m, m) / 2
    return start, (K.diagonal() - torch.tensor(ones, dtype=torch.float64) + start) / 2, K


def toy(name):
    """A map of four dimensions, and its derivative tensors."""
    W, X, strengths = directions(5, 4, 7), directions(5, 3, 8), torch.linspace(1, 2, 5).double()
    curve = SMOOTH[name]
    map = FunctionMap(lambda theta: curve(theta @ W.T) * strengths @ X, 4, 3, torch.float64)
    return map, tensors(curve, strengths, W, X)


@pytest.mark.parametrize("name", SMOOTH)
def test_the_tensors_are_those_of_the_map(name):
    map, truth = toy(name)
    fn, zero = (lambda t: map.fn(t[None])[0]), torch.zeros(4, dtype=torch.float64)
    for T in truth[:4]:
        fn = torch.func.jacfwd(fn)
        assert torch.allclose(fn(zero).flatten(1), T, atol=1e-12)


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("activation", COMPARED)
def test_strengths_and_explained_amount_are_those_of_the_loss(name, activation):
    map, truth = toy(name)
    V = directions(3, 4, 1)
    first, second = map.jvp(V), map.bilinear(V, V)
    D = {"linear": R * first, "quadratic": R**2 * second, "exponential": map.value(R * V)}
    # target directions of their own, so that b is not a norm
    U = unit(D[activation] + 0.3 * directions(3, 3, 2))
    b = (U * D[activation]).sum(-1)

    start, expected, K = quadratic_form(lambda a: loss(truth, a, V, U, activation), 3)
    assert torch.allclose(b, expected, atol=1e-6)
    assert torch.allclose(kernel(V, U, activation), K, atol=1e-6)
    found = fit_strengths(V, U, b, activation, ridge=0.0)
    assert torch.allclose(found.alpha, torch.linalg.solve(K, expected), atol=1e-6)
    left = loss(truth, found.alpha, V, U, activation)
    assert found.explained == pytest.approx(start - left, abs=1e-6)
    for seed in range(5):
        other = found.alpha + 0.05 * directions(1, 3, seed)[0]
        assert loss(truth, other, V, U, activation) > left


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize(
    ("method", "activation"),
    [(Linear(3, R), "linear"), (Quadratic(3, R), "quadratic"), (Exponential(3, R), "exponential")],
)
def test_a_fit_explains_what_the_loss_falls_by(name, method, activation):
    map, truth = toy(name)
    found = fit(map, method, progress=False)
    V, U, alpha = found.features.V, found.features.U, found.features.alpha
    fall = loss(truth, 0 * alpha, V, U, activation) - loss(truth, alpha, V, U, activation)
    assert found.stats["explained"] == pytest.approx(fall, rel=1e-5, abs=1e-6)
    assert 0 < fall <= loss(truth, 0 * alpha, V, U, activation)
    if activation == "exponential":
        assert (alpha >= 0).all()


def test_one_planted_square_is_explained_wholly_and_once():
    v, u, a = directions(1, 4), directions(1, 3, 1), 2.5
    map = FunctionMap(lambda theta: a / 2 * (theta @ v.T) ** 2 @ u, 4, 3, torch.float64)
    found = fit(map, Quadratic(1, R), progress=False)
    # ½ ‖R² a u ⊗ v ⊗ v‖², and Δ̂(θ) = Δ(Rθ)
    assert found.stats["explained"] == pytest.approx((R**2 * a) ** 2 / 2, rel=1e-5)
    assert found.features.alpha.item() == pytest.approx(R**2 * a / 2, rel=1e-5)
