import math

import pytest
import torch
from toys import directions, planted, smooth

from melbo import FunctionMap, MelboError
from melbo.evaluation.redundancy import redundancy
from melbo.maths.geometry import clusters
from melbo.maths.linalg import orthogonalise


def copies(v, k, noise=0.02, seed=7):
    """``k`` unit rows near ``v``."""
    return torch.nn.functional.normalize(v + noise * directions(k, len(v), seed), dim=-1)


def dense_explained(map, V, scale):
    """bᵀK⁻¹b of the exponential transcoder, entry by entry."""
    D = [map.value(scale * v[None])[0] for v in V]
    u = [d / d.norm() for d in D]
    K = torch.tensor(
        [
            [(a @ b) * math.expm1(v @ w) for b, w in zip(u, V, strict=True)]
            for a, v in zip(u, V, strict=True)
        ],
        dtype=torch.float64,
    )
    b = torch.stack([a @ d for a, d in zip(u, D, strict=True)])
    return (b @ torch.linalg.solve(K, b)).item()


class Counting(FunctionMap):
    calls = 0

    def value(self, theta):
        self.calls += 1
        return super().value(theta)


def test_redundancy_equals_the_dense_sums_by_one_call_of_the_map():
    toy = smooth(12, 9)
    toy = Counting(toy.fn, 12, 9, torch.float64)
    v, w, x = orthogonalise(directions(3, 12), "qr")
    V = torch.cat([x[None], copies(v, 3, 0.6), copies(w, 2, 0.6, 8)])
    groups = [torch.tensor([1, 2, 3]), torch.tensor([4, 5]), torch.tensor([0])]
    assert [g.tolist() for g in clusters(V)] == [g.tolist() for g in groups]
    found = redundancy(toy, 3.0 * V, 1.5, groups)
    assert toy.calls == 1
    assert [r.features for r in found] == [(1, 2, 3), (4, 5)]
    for r, rest in zip(found, ([0, 4, 5], [0, 1, 2, 3]), strict=True):
        mean = torch.nn.functional.normalize(V[list(r.features)].sum(0), dim=0)
        assert r.explained == pytest.approx(dense_explained(toy, V, 1.5), rel=1e-4)
        assert r.averaged == pytest.approx(
            dense_explained(toy, torch.cat([V[rest], mean[None]]), 1.5), rel=1e-4
        )
        assert r.without == pytest.approx(dense_explained(toy, V[rest], 1.5), rel=1e-4)
        assert r.without < r.averaged < r.explained
        assert r.describe() == {
            "features": r.features,
            "explained": r.explained,
            "averaged": r.averaged,
            "without": r.without,
        }


def test_copies_of_a_planted_factor_can_be_averaged_but_not_left_out():
    V, U = orthogonalise(directions(4, 64), "qr"), orthogonalise(directions(4, 48, 1), "qr")
    strength = torch.tensor([3.0, 1.0, 2.0, 1.5], dtype=torch.float64)
    toy = planted(V, strength[:, None] * U, torch.expm1)
    everything = torch.cat([V[1:], copies(V[0], 5)])
    (cluster,) = redundancy(toy, everything, 1.0, clusters(everything))
    share = strength.square() * math.expm1(
        1
    )  # of an orthonormal factor: b²/K with b = α(e − 1) and K = e − 1
    assert cluster.features == (3, 4, 5, 6, 7)
    assert cluster.explained == pytest.approx(share.sum().item(), rel=1e-2)
    assert cluster.averaged == pytest.approx(cluster.explained, rel=1e-3)
    assert cluster.explained - cluster.without == pytest.approx(share[0].item(), rel=2e-2)


def test_one_cluster_of_all_leaves_nothing_without_it():
    V = copies(directions(1, 12)[0], 3)
    (everything,) = redundancy(smooth(12, 9), V, 1.0, clusters(V))
    assert everything.without == 0
    assert everything.averaged > 0
    assert redundancy(smooth(12, 9), V[:1], 1.0, clusters(V[:1])) == []


def test_redundancy_refuses_what_does_not_fit():
    V, pair = directions(3, 12), [torch.tensor([0, 3])]
    with pytest.raises(MelboError, match="indices outside 0 to 2"):
        redundancy(smooth(12, 9), V, 1.0, pair)
    with pytest.raises(MelboError, match=r"expected \[k, 12\]"):
        redundancy(smooth(12, 9), directions(4, 8), 1.0, pair)
    with pytest.raises(MelboError, match="not finite at scale 50"):
        redundancy(
            FunctionMap(lambda t: t.exp().sub(1) * 1e38 * t, 12, 12),
            V,
            50.0,
            [torch.tensor([0, 1])],
        )
