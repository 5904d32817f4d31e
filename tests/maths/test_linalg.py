import pytest
import torch
from toys import directions

from melbo.maths.linalg import complete, orthogonalise, top_singular, unit


@pytest.mark.parametrize("how", ["qr", "polar"])
def test_orthogonalised_rows_are_orthonormal_and_keep_their_signs(how):
    V = directions(12, 40)
    W = orthogonalise(V, how)
    assert torch.allclose(W @ W.T, torch.eye(12, dtype=W.dtype), atol=1e-12)
    assert ((V * W).sum(-1) > 0).all()
    # column-major rows scramble broadcasts
    assert W.is_contiguous()


def test_qr_is_gram_schmidt_in_row_order():
    V = directions(5, 9)
    rows = []
    for v in V:
        for w in rows:
            v = v - (v @ w) * w
        rows.append(v / v.norm())
    assert torch.allclose(orthogonalise(V, "qr"), torch.stack(rows), atol=1e-12)


def test_polar_is_the_nearest_orthonormal_set():
    V = directions(5, 9)
    best = (orthogonalise(V, "polar") - V).norm()
    assert best < (orthogonalise(V, "qr") - V).norm()
    for seed in range(20):
        other = orthogonalise(unit(orthogonalise(V, "polar") + 0.05 * directions(5, 9, seed)), "qr")
        assert best <= (other - V).norm()


def test_soft_spreads_more_rows_than_dimensions():
    V = unit(directions(30, 10) + 1.0)

    def overlap(W):
        return (W @ W.T - torch.eye(len(W), dtype=W.dtype)).abs().mean()

    assert overlap(orthogonalise(V, "soft")) < 0.5 * overlap(V)


@pytest.mark.parametrize("how", ["qr", "soft"])
def test_rows_give_way_to_those_with_more_gain(how):
    V = unit(directions(1, 10).repeat(3, 1) + 0.3 * directions(3, 10, 3))
    W = orthogonalise(V, how, gain=torch.tensor([0.01, 1.0, 100.0], dtype=torch.float64))
    stayed = (W * V).sum(-1)
    assert stayed[2] == stayed.max()
    assert stayed[0] < 0.9


def test_soft_follows_its_equation():
    V, gain = unit(directions(4, 6)), torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    W = V.clone()
    for _ in range(10):
        weights = torch.zeros(4, 4, dtype=torch.float64)
        for i in range(4):
            for j in range(4):
                if i != j:
                    weights[i, j] = gain[j] * torch.exp(W[i] @ W[j])
        W = W - weights / weights.sum(1, keepdim=True) @ W
        W = W / W.norm(dim=-1, keepdim=True)
    assert torch.allclose(orthogonalise(V, "soft", gain), W, atol=1e-12)


def test_complete_adds_orthonormal_rows_while_there_is_room():
    V = orthogonalise(directions(3, 8), "qr")
    assert torch.equal(complete(V, 2, torch.Generator()), V[:2])
    W = complete(V, 8, torch.Generator().manual_seed(0))
    assert torch.allclose(W @ W.T, torch.eye(8, dtype=W.dtype), atol=1e-10)
    assert torch.equal(W[:3], V)
    more = complete(V, 11, torch.Generator().manual_seed(0))
    assert torch.allclose(more.norm(dim=-1), torch.ones(11, dtype=W.dtype))


def test_krylov_equals_dense_svd_and_reports_its_residual():
    decay = torch.diag(0.9 ** torch.arange(120, dtype=torch.float64))
    J = directions(200, 120) @ decay @ directions(120, 150, 2)
    start = orthogonalise(directions(10, 150, 5), "qr")
    V, U, S, residual = top_singular(lambda v: v @ J.T, lambda u: u @ J, start, 4, 1e-8, 30)
    u, s, v = torch.linalg.svd(J)
    assert residual < 1e-8
    assert torch.allclose(S, s[:4], rtol=1e-10)
    assert ((V * v[:4]).sum(-1).abs() > 1 - 1e-8).all()
    assert ((U * u.T[:4]).sum(-1).abs() > 1 - 1e-8).all()
    assert torch.allclose((V * v[:4]).sum(-1).sign(), (U * u.T[:4]).sum(-1).sign())


def test_krylov_stops_when_the_space_is_full():
    J, start = directions(6, 5), torch.eye(5, dtype=torch.float64)[:3]
    _, _, S, residual = top_singular(lambda v: v @ J.T, lambda u: u @ J, start, 3, 1e-12, 30)
    assert torch.allclose(S, torch.linalg.svdvals(J)[:3])
    assert residual < 1e-12


def test_unit_replaces_zero_rows():
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert torch.allclose(unit(rows)[0], torch.tensor([0.6, 0.8]))
    assert unit(rows)[1].norm() == pytest.approx(1.0)
    assert torch.equal(unit(rows, fallback=torch.eye(2))[1], torch.tensor([0.0, 1.0]))
