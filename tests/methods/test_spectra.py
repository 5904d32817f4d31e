"""Singular vectors against the dense decomposition: values that repeat, and steep spectra."""

import pytest
import torch
from toys import directions

from melbo import FunctionMap, Linear, MelboError, ObjectiveHessian, fit
from melbo.maths.linalg import orthogonalise, top_eigen, top_singular

SIZE = 300


def with_values(values, dtype):
    """A linear map with given singular values, and its dense decomposition."""
    d = len(values)
    left, right = orthogonalise(directions(d, d), "qr"), orthogonalise(directions(d, d, 1), "qr")
    J = (left.T * values) @ right
    toy = FunctionMap(lambda theta: theta @ J.T.to(dtype), d, d, dtype)
    return toy, torch.linalg.svd(J)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("times", [1, 3, 20, 64])
@pytest.mark.parametrize("kind", [Linear, ObjectiveHessian])
def test_values_that_repeat_are_all_found(kind, times, dtype):
    m = times + 4
    rest = 2 * 0.97 ** torch.arange(2 * SIZE - times, dtype=torch.float64)
    values = torch.cat([torch.full((times,), 3.0, dtype=torch.float64), rest])
    toy, (_, s, Vh) = with_values(values, dtype)
    found = fit(toy, kind(m, 1.0), progress=False).features
    assert torch.allclose(found.alpha.double(), s[:m], rtol=1e-3)
    V = found.V.double()
    # a basis of the repeated value's space, whichever
    inside = Vh[:times] @ V[:times].T
    assert torch.linalg.svdvals(inside).min() > 1 - 1e-4
    assert ((V[times:] * Vh[times:m]).sum(-1).abs() > 1 - 1e-3).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("m", [1, 8, 20])
@pytest.mark.parametrize("kind", [Linear, ObjectiveHessian])
def test_steep_spectra_are_followed_down(kind, m, dtype):
    values = torch.arange(1, SIZE + 1, dtype=torch.float64) ** -2
    toy, (U, s, Vh) = with_values(values, dtype)
    found = fit(toy, kind(m, 1.0), progress=False).features
    assert torch.allclose(found.alpha.double(), s[:m], rtol=1e-3)
    assert ((found.V.double() * Vh[:m]).sum(-1).abs() > 1 - 1e-3).all()
    assert ((found.U.double() * U.T[:m]).sum(-1).abs() > 1 - 1e-3).all()
    eye = torch.eye(m, dtype=torch.float64)
    assert torch.allclose(found.V.double() @ found.V.double().T, eye, atol=1e-5)


@pytest.mark.parametrize("power", [-2, -4, -8])
def test_eigenvectors_below_rounding_are_refused_with_the_number_that_there_is(power):
    values = torch.arange(1, SIZE + 1, dtype=torch.float64) ** power
    toy, _ = with_values(values, torch.float32)
    there = int((values > torch.finfo(torch.float32).eps ** 0.5).sum())
    with pytest.raises(MelboError, match=r"in float32 .* ask for \d+, or use Linear") as refusal:
        fit(toy, ObjectiveHessian(100, 1.0), progress=False)
    assert f"ask for {there}," in str(refusal.value)
    assert fit(toy, ObjectiveHessian(min(there, 4), 1.0), progress=False).status


def test_a_map_of_few_dimensions_is_no_steep_one():
    toy, (_, s, _) = with_values(torch.tensor([2.0, 1, 0.5, 0.25]).double(), torch.float64)
    found = fit(toy, ObjectiveHessian(4, 1.0), progress=False).features
    assert torch.allclose(found.alpha, s)


@pytest.mark.parametrize("iterate", [top_singular, top_eigen])
def test_a_block_that_would_miss_repeated_values_is_refused(iterate):
    def same(v):
        return v

    start = orthogonalise(directions(3, 9), "qr")
    products = (same, same) if iterate is top_singular else (same,)
    with pytest.raises(MelboError, match="a block of 3 rows for 4 singular values"):
        iterate(*products, start, 4, 1e-6, 5)


def test_the_basis_stays_orthonormal_where_products_bring_nothing_new():
    J = torch.zeros(60, 60, dtype=torch.float64)
    J[:2, :2] = torch.eye(2)
    start = orthogonalise(directions(5, 60), "qr")
    V, _, S, residual = top_singular(lambda v: v @ J.T, lambda u: u @ J, start, 5, 1e-9, 12)
    assert torch.allclose(S[:2], torch.ones(2, dtype=torch.float64))
    assert S[2:].max() < 1e-12
    assert residual < 1e-9
    assert torch.allclose(V @ V.T, torch.eye(5, dtype=torch.float64), atol=1e-12)
