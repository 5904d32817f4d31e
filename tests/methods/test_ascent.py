import dense
import pytest
import torch
from cases import tiny_model
from toys import directions, planted, smooth

from melbo import CausalMap, FunctionMap, Linear, MelboError, Prompts, fit
from melbo.maths.linalg import random_rows
from melbo.methods import Alike, Melbo, ObjectiveHessian

RAGGED = ((5, 6, 7, 8, 9, 10, 11), (12, 13, 14, 15), (16, 17, 18, 19, 20, 21, 22, 23, 24))


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def stacked(lm):
    return CausalMap(lm, Prompts(("a", "b", "c"), RAGGED), 1, 3, concatenate=True)


def value_of(map, V, p, q):
    """The objective, prompt by prompt and token by token."""
    total = torch.zeros(len(V), dtype=V.dtype)
    for i, D in enumerate(map.value(V)):
        for prompt in D.view(map.response_shape):
            total[i] += sum(token.norm() ** p for token in prompt) ** (1 / q)
    return total


@pytest.mark.parametrize(("p", "q"), [(2, None), (2, 1), (4, None), (4, 1)])
def test_objective_sums_norms_over_channels(stacked, p, q):
    V = 0.5 * directions(4, stacked.d_source)
    found = Melbo(4, 0.5, p=p, q=q).objective(stacked, stacked.value(V), V[:0])
    assert torch.allclose(found, value_of(stacked, V, p, q or p), rtol=1e-9)


def test_the_first_step_follows_the_sign_of_the_gradient(stacked):
    """Adam's first step is the gradient over its own size, entry by entry."""
    method = Melbo(3, 0.5, penalty=0.7, learning_rate=0.01)
    state = method.init(stacked, torch.Generator().manual_seed(0))
    V = state.V.clone().requires_grad_()
    cosines = torch.triu(V @ V.T, diagonal=1)
    value = method.objective(stacked, dense.response(stacked, 0.5 * V), V[:0])
    total = value.log().sum() - 0.7 * cosines.square().sum()
    g = torch.autograd.grad(total, V)[0]
    g = g - (g * state.V).sum(-1, keepdim=True) * state.V
    moved = state.V + 0.01 * stacked.d_source**-0.5 * g.sign()
    expected = torch.nn.functional.normalize(moved, dim=-1)
    assert torch.allclose(method.step(stacked, state)[0].V, expected, atol=1e-9)


@pytest.mark.parametrize("size", [1, 2, 5, 16])
def test_vectors_climb_and_batches_are_orthogonal(size):
    toy = smooth(12, 9)
    method = Melbo(5, 1.0, steps=150, batch_size=size, learning_rate=0.05)
    found = fit(toy, method, progress=False)
    V = found.features.V.double()
    assert V.shape == (5, 12)
    for i in range(0, 5, size):
        for j in range(0, i, size):
            assert (V[i : i + size] @ V[j : j + size].T).abs().max() < 1e-5
    best = toy.value(V).norm(dim=-1)[0]
    tried = toy.value(random_rows(200, 12, torch.Generator().manual_seed(1)).double()).norm(dim=-1)
    assert best > 0.95 * tried.max()
    assert len(found.history) == 150 * -(-5 // size)


def test_without_the_penalty_a_batch_is_what_each_vector_would_be_alone():
    toy = smooth(12, 9)
    batch = fit(toy, Melbo(4, 1.0, steps=40, batch_size=4, penalty=0.0), progress=False).features.V
    draw = torch.Generator().manual_seed(0)
    starts = random_rows(4, 12, draw).double()
    for row, start in zip(batch, starts, strict=True):
        method = Melbo(1, 1.0, steps=40, penalty=0.0)
        state = method.init(toy, torch.Generator())
        state = type(state)(**{**vars(state), "V": start[None]})
        for _ in range(40):
            state, _ = method.step(toy, state)
        assert torch.allclose(state.V[0], row.double(), atol=1e-8)


def test_the_penalty_keeps_a_batch_apart():
    one_hill = planted(directions(1, 8), directions(1, 8, 1), torch.expm1)

    def overlap(penalty):
        method = Melbo(3, 1.0, steps=200, batch_size=3, penalty=penalty, learning_rate=0.05)
        V = fit(one_hill, method, progress=False).features.V
        return (V @ V.T).fill_diagonal_(0).abs().max()

    assert overlap(0.0) > 0.99
    assert overlap(10.0) < 0.5


def test_alike_finds_other_vectors_of_the_same_effect():
    """Δ depends on the sum of two planted coordinates: what one does, the other does too."""
    v, u = directions(3, 10).double(), directions(1, 10, 1).double()
    v = torch.linalg.qr(v.T)[0].T
    toy = FunctionMap(
        lambda theta: torch.tanh(theta @ v.T).sum(-1, keepdim=True) @ u, 10, 10, torch.float64
    )
    method = Alike(2, 1.0, steps=400, learning_rate=0.05, like=tuple(v[0].tolist()))
    found = fit(toy, method, progress=False).features.V
    assert "like" not in Alike(2, 1.0, like=(1.0,)).describe()
    every = torch.cat([v[:1], found])
    assert torch.allclose(every @ every.T, torch.eye(3, dtype=torch.float64), atol=1e-6)
    aim = toy.value(v[:1])
    assert ((toy.value(found) - aim).norm(dim=-1) < 0.1 * aim.norm()).all()


def test_eigenvectors_of_the_objective_are_singular_vectors_of_the_stacked_jacobian(lm, stacked):
    hessian = fit(stacked, ObjectiveHessian(4, 1.0), progress=False).features
    jacobian = fit(stacked, Linear(4, 1.0), progress=False).features
    assert ((hessian.V * jacobian.V).sum(-1).abs() > 0.999).all()
    J = dense.jacobian(stacked)
    sigma = torch.linalg.svdvals(J)
    curvature = (stacked.square_hvp(hessian.V) * hessian.V).sum(-1)
    assert torch.allclose(curvature, 2 * sigma[:4] ** 2, rtol=1e-3)
    averaged = fit(CausalMap(lm, stacked.prompts, 1, 3), Linear(4, 1.0), progress=False).features
    assert ((hessian.V * averaged.V).sum(-1).abs() < 0.99).any()


def test_one_prompt_and_one_token_make_them_the_same(lm):
    settings = {"source": 1, "target": 3, "target_tokens": 1}
    one = Prompts(("a",), RAGGED[:1])
    hessian = fit(CausalMap(lm, one, **settings), ObjectiveHessian(3, 1.0), progress=False).features
    jacobian = fit(CausalMap(lm, one, **settings), Linear(3, 1.0), progress=False).features
    assert ((hessian.V * jacobian.V).sum(-1).abs() > 0.999).all()


def test_second_derivatives_of_the_square_equal_the_dense_ones(stacked):
    J = dense.jacobian(stacked)
    V = directions(5, stacked.d_source)
    truth = 2 * V @ J.T @ J
    assert (stacked.square_hvp(V) - truth).norm() < 1e-5 * truth.norm()
    toy = smooth(12, 9)
    J = dense.jacobian(toy)
    assert torch.allclose(toy.square_hvp(torch.eye(12).double()), 2 * J.T @ J, atol=1e-10)


def test_the_square_of_an_average_is_refused(lm):
    with pytest.raises(MelboError, match="concatenate=True"):
        CausalMap(lm, Prompts(("a", "b", "c"), RAGGED), 1, 3).square_hvp(directions(1, lm.width))


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (Melbo(2, 1.0, steps=0), "got steps=0.* expected steps and batch_size of at least 1"),
        (Melbo(2, 1.0, batch_size=0), "batch_size=0.* expected steps and batch_size of at least 1"),
        (Melbo(2, 1.0, penalty=-1.0), "penalty=-1.* penalty of at least 0"),
        (Melbo(2, 1.0, learning_rate=0.0), "learning_rate=0.* learning_rate above 0"),
        (Melbo(2, 1.0, p=1), "got p=1"),
        (Melbo(13, 1.0), "at most 12"),
        (Alike(2, 1.0), "got like with 0 numbers"),
        (Alike(12, 1.0, like=(1.0,) * 12), "at most 11"),
        (ObjectiveHessian(13, 1.0), "at most 12"),
    ],
)
def test_settings_that_cannot_work(method, says):
    with pytest.raises(MelboError, match=says):
        fit(smooth(12, 9), method, progress=False)
