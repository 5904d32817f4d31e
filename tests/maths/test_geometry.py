import math

import pytest
import torch
from toys import directions

from melbo import MelboError
from melbo.maths.geometry import (
    clusters,
    energy_share,
    main_direction,
    match,
    mean_direction,
    spread,
    stability,
)
from melbo.maths.linalg import orthogonalise


def test_orthonormal_rows_are_all_there():
    found = spread(5.0 * orthogonalise(directions(6, 20), "qr"))
    assert found.condition_number == pytest.approx(1)
    assert found.effective == pytest.approx(6)
    assert found.mean < 1e-12
    assert found.largest < 1e-12


def test_spread_equals_the_plain_sums():
    V = directions(7, 9)
    pairs = [abs((V[i] @ V[j]).item()) for i in range(7) for j in range(i)]
    found = spread(V)
    mean = sum(pairs) / 21
    assert found.mean == pytest.approx(mean)
    assert found.deviation == pytest.approx(math.sqrt(sum((p - mean) ** 2 for p in pairs) / 20))
    assert found.largest == pytest.approx(max(pairs))
    assert found.condition_number == pytest.approx(torch.linalg.cond(V).item())


def test_rows_that_repeat_count_once():
    V = orthogonalise(directions(3, 20), "qr")
    found = spread(torch.cat([V, -V]))
    assert found.effective == pytest.approx(3)
    assert found.condition_number == math.inf
    assert spread(directions(30, 20)).condition_number == math.inf
    assert spread(V[0]).mean == 0


def test_random_directions_have_the_cosines_that_are_expected():
    found = spread(directions(400, 200))
    assert found.mean == pytest.approx(found.random_mean, rel=0.02)


def test_energy_lies_where_it_was_put():
    V = orthogonalise(directions(4, 12), "qr")
    x = 3.0 * V[:1] + 4.0 * V[1:2]
    assert energy_share(V, x).tolist() == pytest.approx([9 / 25, 16 / 25, 0, 0], abs=1e-12)
    isotropic = torch.randn(20000, 12, generator=torch.Generator().manual_seed(0))
    assert energy_share(V, isotropic).tolist() == pytest.approx([1 / 12] * 4, rel=0.05)


@pytest.mark.parametrize("signed", [True, False])
def test_the_same_set_in_another_order_is_found_again(signed):
    V = directions(8, 64)
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    found = match(V, V[order] if signed else -V[order], signed)
    assert found.cosine.tolist() == pytest.approx([1.0] * 8)
    assert torch.equal(order[found.index], torch.arange(8))
    assert 0.05 < found.baseline < 0.4


def test_the_baseline_is_what_random_sets_reach():
    V, others = directions(300, 64), directions(40, 64, 1)
    found = match(V, others)
    assert found.cosine.mean().item() == pytest.approx(found.baseline, abs=0.02)
    assert found.describe()["above_0.9"] == 0


def test_stability_is_the_mean_over_seeds():
    V = directions(5, 64)
    kept = torch.cat([V[:2], directions(3, 64, 5)])
    found = stability([V, V.flip(0), kept])
    best = (V @ kept.T).max(1).values
    assert torch.allclose(found.cosine, (1 + best) / 2)
    with pytest.raises(MelboError, match="got 1 set"):
        stability([V])


def test_sets_of_other_widths_are_refused():
    with pytest.raises(MelboError, match="widths 8 and 9"):
        match(directions(2, 8), directions(2, 9))


def test_directions_of_a_cluster():
    v = directions(1, 32)[0]
    V = torch.nn.functional.normalize(v + 0.3 * directions(20, 32, 1), dim=-1)
    assert mean_direction(V) @ v > 0.99
    assert main_direction(V) @ v > 0.98
    flipped = V * torch.where(torch.arange(20) % 4 == 0, -1.0, 1.0)[:, None]
    assert main_direction(flipped) @ v > 0.98
    assert mean_direction(flipped) @ v > 0.9


def copies(v, k, noise=0.02, seed=7):
    """``k`` unit rows near ``v``."""
    return torch.nn.functional.normalize(v + noise * directions(k, len(v), seed), dim=-1)


def test_clusters_are_the_copies_that_were_made_largest_first():
    v, w, x = orthogonalise(directions(3, 32), "qr")
    more = copies(w, 2, seed=8)
    V = torch.cat([w[None], copies(v, 2), x[None], more, -v[None], copies(w, 1, seed=9)])
    assert [rows.tolist() for rows in clusters(5.0 * V)] == [[0, 4, 5, 7], [1, 2], [3], [6]]
    assert [rows.tolist() for rows in clusters(V[:1])] == [[0]]
    same = torch.stack([v, w, v, v])
    assert [rows.tolist() for rows in clusters(same)] == [[0, 2, 3], [1]]
    for threshold in (0.0, 1.0, float("nan")):
        with pytest.raises(MelboError, match="threshold is"):
            clusters(V, threshold)


def average_linkage(V, threshold):
    """Join the two groups with the largest mean cosine, until it falls below the threshold."""
    groups = [[i] for i in range(len(V))]
    while len(groups) > 1:
        pairs = {
            (a, b): (V[groups[a]] @ V[groups[b]].T).mean().item()
            for a in range(len(groups))
            for b in range(a)
        }
        a, b = max(pairs, key=pairs.get)
        if pairs[a, b] < threshold:
            break
        groups[b] += groups.pop(a)
    return sorted((sorted(g) for g in groups), key=lambda g: (-len(g), g[0]))


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.6])
def test_clusters_equal_average_linkage_written_out(threshold):
    V = torch.cat([copies(v, 5, 1.0 + i / 4, i) for i, v in enumerate(directions(4, 12))])
    found = [rows.tolist() for rows in clusters(V, threshold)]
    assert found == average_linkage(V, threshold)
    assert 1 < len(found) < 20
