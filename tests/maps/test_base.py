import dense
import pytest
import torch
from toys import directions, smooth

from melbo import FunctionMap, MelboError

#: Directions that each derivative at zero takes: of inputs (v) or outputs (u).
AT_ZERO = {"vjp": "u", "jvp": "v", "hvp": "uv", "bilinear": "vv"}


@pytest.fixture(scope="module")
def toy():
    return smooth()


def test_first_order_equals_dense_jacobian(toy):
    J = dense.jacobian(toy)
    V, U = directions(5, 12, 1), directions(5, 9, 2)
    assert torch.allclose(toy.jvp(V), V @ J.T, atol=1e-8, rtol=0)
    assert torch.allclose(toy.value_and_vjp(torch.zeros(5, 12), U)[1], U @ J, atol=1e-8, rtol=0)
    assert torch.allclose(toy.vjp(U), U @ J, atol=1e-8, rtol=0)


def test_second_order_equals_dense_hessian(toy):
    H = dense.hessian(toy)
    V, W, U = directions(5, 12, 1), directions(5, 12, 3), directions(5, 9, 2)
    assert torch.allclose(
        toy.bilinear(V, W), torch.einsum("oij,ki,kj->ko", H, V, W), atol=1e-8, rtol=0
    )
    assert torch.allclose(toy.hvp(U, V), torch.einsum("oij,ko,ki->kj", H, U, V), atol=1e-8, rtol=0)


def test_vjp_away_from_zero_equals_dense_jacobian(toy):
    theta, U = 0.7 * directions(4, 12, 5), directions(4, 9, 6)
    value, gradient = toy.value_and_vjp(theta, U)
    rows = torch.stack(
        [
            torch.func.jacrev(lambda t: toy.fn(t[None])[0])(t).T @ u
            for t, u in zip(theta, U, strict=True)
        ]
    )
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


def derivative(map, oracle, k=7, seed=1):
    """The derivative at zero of this name in ``k`` random directions."""
    rows = {"u": directions(k, map.d_target, seed), "v": directions(k, map.d_source, seed + 1)}
    return getattr(map, oracle)(*(rows[which] for which in AT_ZERO[oracle]))


@pytest.mark.parametrize("oracle", AT_ZERO)
def test_derivatives_at_zero_run_the_function_on_one_row(toy, oracle):
    seen = []

    def fn(theta):
        seen.append(theta.shape[0])
        return toy.fn(theta)

    map = FunctionMap(fn, 12, 9, torch.float64)
    seen.clear()
    shared = derivative(map, oracle)
    assert seen == [1]
    seen.clear()
    map._shares_zero = False
    assert torch.allclose(derivative(map, oracle), shared, atol=1e-12)
    assert seen == [7]


class _Alone(torch.autograd.Function):
    """θ³ + θ² with every derivative, which ``vmap`` refuses."""

    @staticmethod
    def forward(x):
        return x**3 + x**2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, u):
        (x,) = ctx.saved_tensors
        return u * (3 * x**2 + 2 * x)

    @staticmethod
    def jvp(ctx, v):
        (x,) = ctx.saved_tensors
        return v * (3 * x**2 + 2 * x)


# no bilinear: torch itself loses the second derivative of nested `jvp` rules
@pytest.mark.parametrize("oracle", ["vjp", "jvp", "hvp"])
def test_a_function_that_vmap_refuses_is_given_as_many_rows_as_there_are(oracle):
    A = torch.randn(12, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    refuses = FunctionMap(lambda theta: _Alone.apply(theta @ A + 1) - 2, 12, 9, torch.float64)
    plain = FunctionMap(
        lambda theta: (theta @ A + 1) ** 3 + (theta @ A + 1) ** 2 - 2, 12, 9, torch.float64
    )
    assert torch.allclose(derivative(refuses, oracle), derivative(plain, oracle), atol=1e-12)
    assert not refuses._shares_zero
    assert plain._shares_zero


class _Untransformed(torch.autograd.Function):
    """2θ, in the old form that no function transform takes."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, u):
        return 2 * u


def test_a_function_in_plain_reverse_mode_only_keeps_its_first_order():
    map = FunctionMap(_Untransformed.apply, 5, 5, torch.float64)
    U = directions(3, 5)
    assert torch.equal(map.vjp(U), 2 * U)
    for oracle in ("jvp", "hvp", "bilinear"):
        with pytest.raises(MelboError, match="cannot be differentiated in forward mode"):
            derivative(map, oracle)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MelboError])
@pytest.mark.parametrize("oracle", AT_ZERO)
def test_an_error_that_is_not_of_vmap_is_raised_and_changes_nothing(toy, oracle, error):
    fail = False

    def fn(theta):
        if fail:
            raise error("of the function's own")
        return toy.fn(theta)

    map = FunctionMap(fn, 12, 9, torch.float64)
    fail = True
    with pytest.raises(error, match="of the function's own"):
        derivative(map, oracle)
    assert map._shares_zero


@pytest.mark.parametrize("chunk", [1, 2, 7, 40])
@pytest.mark.parametrize("cost", [1, 3, 8])
@pytest.mark.parametrize("k", [0, 1, 5, 29, 64])
def test_chunks_are_as_few_and_as_equal_as_can_be(k, cost, chunk):
    chunks = list(smooth(chunk=chunk)._cut(k, cost))
    most = max(1, chunk // cost)
    sizes = [rows.stop - rows.start for rows in chunks]
    assert [i for rows in chunks for i in range(rows.start, rows.stop)] == list(range(k))
    assert len(chunks) == -(-k // most)
    assert max(sizes, default=0) <= most
    assert max(sizes, default=0) - min(sizes, default=0) <= 1


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_every_oracle_is_invariant_to_the_chunk(toy, chunk):
    other = smooth(chunk=chunk)
    V, U = directions(7, 12, 1), directions(7, 9, 2)
    assert torch.allclose(toy.value(V), other.value(V), atol=1e-12)
    assert torch.allclose(toy.jvp(V), other.jvp(V), atol=1e-12)
    assert torch.allclose(toy.vjp(U), other.vjp(U), atol=1e-12)
    assert torch.allclose(toy.hvp(U, V), other.hvp(U, V), atol=1e-12)
    assert torch.allclose(toy.bilinear(V, V), other.bilinear(V, V), atol=1e-12)
    for ours, theirs in zip(toy.value_and_vjp(V, U), other.value_and_vjp(V, U), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)


def test_wrong_shapes_are_refused(toy):
    with pytest.raises(MelboError, match=r"expected \[k, 12\]"):
        toy.value(torch.zeros(3, 11))
    with pytest.raises(MelboError, match=r"expected \[3, 9\]"):
        toy.hvp(torch.zeros(2, 9), torch.zeros(3, 12))
    with pytest.raises(MelboError, match=r"expected \[3, 9\]"):
        toy.vjp(torch.zeros(3, 12))
    with pytest.raises(MelboError, match=r"expected \[1, 4\]"):
        FunctionMap(lambda t: t, 3, 4)
    with pytest.raises(MelboError, match="expected 0"):
        FunctionMap(lambda t: t + 1, 3, 3)
