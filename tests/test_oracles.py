import dense
import pytest
import torch
from toys import directions, smooth

from melbo import FunctionMap, MelboError


@pytest.fixture(scope="module")
def toy():
    return smooth()


def test_first_order_equals_dense_jacobian(toy):
    J = dense.jacobian(toy)
    V, U = directions(5, 12, 1), directions(5, 9, 2)
    assert torch.allclose(toy.jvp(V), V @ J.T, atol=1e-8, rtol=0)
    assert torch.allclose(toy.value_and_vjp(torch.zeros(5, 12), U)[1], U @ J, atol=1e-8, rtol=0)


def test_second_order_equals_dense_hessian(toy):
    H = dense.hessian(toy)
    V, W, U = directions(5, 12, 1), directions(5, 12, 3), directions(5, 9, 2)
    assert torch.allclose(toy.bilinear(V, W), torch.einsum("oij,ki,kj->ko", H, V, W), atol=1e-8, rtol=0)
    assert torch.allclose(toy.hvp(U, V), torch.einsum("oij,ko,ki->kj", H, U, V), atol=1e-8, rtol=0)


def test_vjp_away_from_zero_equals_dense_jacobian(toy):
    theta, U = 0.7 * directions(4, 12, 5), directions(4, 9, 6)
    value, gradient = toy.value_and_vjp(theta, U)
    rows = torch.stack([torch.func.jacrev(lambda t: toy.fn(t[None])[0])(t).T @ u for t, u in zip(theta, U, strict=True)])
    assert torch.allclose(value, toy.value(theta), atol=1e-12)
    assert torch.allclose(gradient, rows, atol=1e-10)


def test_adjoint_identity(toy):
    V, U = directions(6, 12, 7), directions(6, 9, 8)
    forward = (toy.jvp(V) * U).sum(-1)
    backward = (V * toy.value_and_vjp(torch.zeros(6, 12), U)[1]).sum(-1)
    assert torch.allclose(forward, backward, atol=1e-12)
    assert torch.allclose((toy.bilinear(V, V) * U).sum(-1), (toy.hvp(U, V) * V).sum(-1), atol=1e-12)


def test_cotangent_given_by_the_value_is_gauss_seidel(toy):
    theta = 0.5 * directions(7, 12, 9)
    value, gradient = toy.value_and_vjp(theta, lambda d, rows: d / d.norm(dim=-1, keepdim=True))
    again = toy.value_and_vjp(theta, value / value.norm(dim=-1, keepdim=True))[1]
    assert torch.allclose(gradient, again, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_every_oracle_is_invariant_to_the_chunk(toy, chunk):
    other = smooth(chunk=chunk)
    V, U = directions(7, 12, 1), directions(7, 9, 2)
    assert torch.allclose(toy.value(V), other.value(V), atol=1e-12)
    assert torch.allclose(toy.jvp(V), other.jvp(V), atol=1e-12)
    assert torch.allclose(toy.hvp(U, V), other.hvp(U, V), atol=1e-12)
    assert torch.allclose(toy.bilinear(V, V), other.bilinear(V, V), atol=1e-12)
    for ours, theirs in zip(toy.value_and_vjp(V, U), other.value_and_vjp(V, U), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)


def test_wrong_shapes_are_refused(toy):
    with pytest.raises(MelboError, match=r"expected \[k, 12\]"):
        toy.value(torch.zeros(3, 11))
    with pytest.raises(MelboError, match=r"expected \[3, 9\]"):
        toy.hvp(torch.zeros(2, 9), torch.zeros(3, 12))
    with pytest.raises(MelboError, match=r"expected \[1, 4\]"):
        FunctionMap(lambda t: t, 3, 4)
    with pytest.raises(MelboError, match="expected 0"):
        FunctionMap(lambda t: t + 1, 3, 3)
