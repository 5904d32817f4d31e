import math

import pytest
import torch

from melbo import MelboError
from melbo.dictionary import (
    capacity,
    geometry,
    interference,
    measured_interference,
    neighbour_cosines,
    neighbour_hubs,
    orthogonality_penalty,
    welch_floor,
    worst_case_capacity,
)
from melbo.maths.linalg import orthogonalise, random_rows


def directions(m, d, seed=0):
    return random_rows(m, d, torch.Generator().manual_seed(seed)).double()


def plain_cosines(W):
    """Cosines of each row with the others, one pair at a time ``[m][m − 1]``."""
    return [
        [(W[i] @ W[j] / W[i].norm() / W[j].norm()).item() for j in range(len(W)) if j != i]
        for i in range(len(W))
    ]


@pytest.mark.parametrize("signed", [True, False])
def test_neighbours_are_those_of_the_plain_sums(signed):
    W = 3 * directions(9, 5)
    found = neighbour_cosines(W, [1, 3, 8], signed)
    for i, cosines in enumerate(plain_cosines(W)):
        ordered = sorted((c if signed else abs(c) for c in cosines), reverse=True)
        assert found[i].tolist() == pytest.approx([ordered[0], ordered[2], ordered[7]])
    torch.testing.assert_close(neighbour_cosines(W, 3, signed), found[:, 1])


def test_blocks_change_nothing(monkeypatch):
    W = directions(20, 5)
    whole, hubs = neighbour_cosines(W, [1, 5]), neighbour_hubs(W)
    monkeypatch.setattr(geometry, "_BLOCK", 60)  # three rows at a time
    torch.testing.assert_close(neighbour_cosines(W, [1, 5]), whole)
    torch.testing.assert_close(neighbour_hubs(W).shared, hubs.shared)
    some = torch.tensor([7, 2, 19, 11])
    torch.testing.assert_close(neighbour_cosines(W, [1, 5], rows=some), whole[some])


@pytest.mark.parametrize(
    ("signed", "wanted"), [(True, (0.147, 0.121, 0.0955)), (False, (0.153, 0.128, 0.104))]
)
def test_random_directions_at_the_size_of_a_dictionary(signed, wanted):
    W = random_rows(24_576, 768, torch.Generator().manual_seed(0))
    found = neighbour_cosines(W, (1, 10, 100), signed, rows=torch.arange(400)).mean(0)
    assert found.tolist() == pytest.approx(wanted, abs=0.002)


def test_a_planted_hub_is_found():
    W = directions(30, 200)
    W[5:15] = W[2] + 0.9 * W[5:15]  # cosine about .74 with row 2, .55 with each other
    hubs = neighbour_hubs(W, 0.3)
    assert hubs.nearest[5:15].tolist() == [2] * 10
    assert hubs.shared[2] == 10
    assert hubs.shared.sum() == 11
    found = hubs.describe()
    assert found["near"] == pytest.approx(11 / 30)
    assert found["neighbours"] == 2
    assert found["largest_hub"] == 10
    assert found["largest_hub_share"] == pytest.approx(10 / 11)
    assert neighbour_hubs(W, 1.0).describe()["largest_hub_share"] == 0


def test_nearest_neighbours_are_those_of_the_plain_sums():
    W = directions(12, 4)
    hubs = neighbour_hubs(W, 0.6)
    shared = [0] * 12
    for i, cosines in enumerate(plain_cosines(W)):
        others = [j for j in range(12) if j != i]
        j = max(range(11), key=cosines.__getitem__)
        assert hubs.nearest[i] == others[j]
        assert hubs.cosine[i].item() == pytest.approx(cosines[j])
        shared[others[j]] += cosines[j] >= 0.6
    assert hubs.shared.tolist() == shared
    assert 0 < sum(shared) < 12


@pytest.mark.parametrize("shape", [(12, 4), (4, 12), (5, 5)])
def test_the_penalty_is_the_plain_sum_and_so_is_its_gradient(shape):
    W = (2 * directions(*shape)).requires_grad_()
    m = shape[0]
    pairs = [(i, j) for i in range(m) for j in range(m) if i != j]
    plain = sum((W[i] @ W[j]) ** 2 for i, j in pairs) / len(pairs)
    found = orthogonality_penalty(W)
    torch.testing.assert_close(found, plain)
    (ours,), (theirs,) = (torch.autograd.grad(value, W) for value in (found, plain))
    torch.testing.assert_close(ours, theirs)


def test_the_welch_floor_is_met_by_tight_frames_and_undercut_by_nothing():
    angles = torch.arange(3) * 2 * math.pi / 3
    three = torch.stack([angles.cos(), angles.sin()], 1).double()
    assert orthogonality_penalty(three).item() == pytest.approx(welch_floor(3, 2))
    assert welch_floor(3, 2) == pytest.approx(0.25)
    assert orthogonality_penalty(directions(40, 7)).item() > welch_floor(40, 7) > 0
    assert welch_floor(6, 9) == 0
    assert orthogonality_penalty(orthogonalise(directions(6, 9), "qr")).item() < 1e-28


def test_descent_on_the_penalty_reaches_the_floor():
    W = directions(12, 4).requires_grad_()
    for _ in range(400):
        penalty = orthogonality_penalty(W / W.norm(dim=1, keepdim=True))
        (grad,) = torch.autograd.grad(penalty, W)
        W = (W - 5 * grad).detach().requires_grad_()
    assert penalty.item() == pytest.approx(welch_floor(12, 4), rel=1e-3)


def test_interference_of_random_directions_is_one_over_root_d():
    W = directions(1000, 300)
    assert measured_interference(5 * W) == pytest.approx(interference(300), rel=0.01)
    cosines = W @ W.T
    off = cosines[~torch.eye(1000, dtype=torch.bool)]
    assert measured_interference(W) == pytest.approx(off.square().mean().sqrt().item())


def test_interference_grows_with_the_root_of_what_is_active():
    g = torch.Generator().manual_seed(3)
    sums = torch.stack([random_rows(20, 100, g).sum(0) for _ in range(400)])
    along = sums @ random_rows(60, 100, g).T
    assert along.square().mean().sqrt().item() == pytest.approx(interference(100, 20), rel=0.02)
    assert interference(100, round(capacity(100, 0.5))) == pytest.approx(0.5)
    assert capacity(768) == 768


def test_the_worst_case_allows_few():
    assert worst_case_capacity(24_576, 768) == pytest.approx(9.5, abs=0.05)


def test_bad_directions_are_refused_in_a_line():
    W = directions(10, 4)
    for bad in (W[0], W[:1], W[None]):
        with pytest.raises(MelboError, match="expected two rows or more"):
            neighbour_cosines(bad, 1)
    for k in (0, 10, [1, 11]):
        with pytest.raises(MelboError, match="expected 1 to 9, as each of 10 rows"):
            neighbour_cosines(W, k)
    with pytest.raises(MelboError, match="k is empty"):
        neighbour_cosines(W, [])
    for rows in (torch.tensor([10]), torch.tensor([-1]), torch.tensor([True])):
        with pytest.raises(MelboError, match="expected 0 to 9"):
            neighbour_cosines(W, 1, rows=rows)
    with pytest.raises(MelboError, match="expected a cosine"):
        neighbour_hubs(W, 1.5)
    nan, zero = W.clone(), W.clone()
    nan[4, 2], zero[6] = float("nan"), 0
    for call in (neighbour_hubs, orthogonality_penalty, measured_interference, neighbour_cosines):
        with pytest.raises(MelboError, match="row 4 of 10 directions is not finite"):
            call(nan)
        with pytest.raises(MelboError, match="row 6 of 10 directions is zero"):
            call(zero)


def test_bad_sizes_are_refused():
    with pytest.raises(MelboError, match="got 1 directions of width 4"):
        welch_floor(1, 4)
    with pytest.raises(MelboError, match="two or more"):
        worst_case_capacity(1, 4)
    with pytest.raises(MelboError, match="got 2 active directions of width 0"):
        interference(0, 2)
    with pytest.raises(MelboError, match="got a level of -1"):
        capacity(4, -1)
