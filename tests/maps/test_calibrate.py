import math

import pytest
import torch
from toys import directions, planted, smooth

from melbo import FunctionMap, MelboError, calibrate
from melbo.maths.linalg import random_rows


def scalar_map(curve, d=6):
    """Δ(θ) = θ·(1 + curve(‖θ‖)): the ratio at R is |curve(R)| along every direction."""
    return FunctionMap(
        lambda theta: theta * (1 + curve((theta.square().sum(-1, keepdim=True) + 1e-300).sqrt())),
        d,
        d,
        torch.float64,
    )


@pytest.mark.parametrize("target", [0.1, 0.5, 2.0])
def test_scale_solves_the_ratio(target):
    found = calibrate(scalar_map(lambda r: r**2), nonlinearity=target, progress=False)
    assert found.scale == pytest.approx(math.sqrt(target), rel=0.02)
    assert found.warning is None
    assert all(q == pytest.approx(r**2, rel=1e-6) for r, q in found.curve)
    assert found.curve == sorted(found.curve)


def test_ratio_is_the_root_mean_square_over_directions():
    toy = smooth(12, 9)
    found = calibrate(toy, num_directions=7, progress=False)
    v = random_rows(7, 12, torch.Generator().manual_seed(0)).double()
    linear = toy.jvp(v)
    for pairs, used in ((found.curve, 4), (found.solved, 7)):
        for scale, ratio in pairs:
            off = (toy.value(scale * v) - scale * linear).norm(dim=-1)
            shares = (off / (scale * linear).norm(dim=-1))[:used]
            assert ratio == pytest.approx(shares.square().mean().sqrt().item(), rel=1e-6)
    assert found.solved[-1][0] == pytest.approx(found.scale, rel=0.02)


def test_few_passes_are_needed():
    toy = smooth(12, 9)
    rows = []
    value = toy.value
    toy.value = lambda theta: rows.append(len(theta)) or value(theta)
    calibrate(toy, progress=False)
    # the curve on four directions, then at most four scales on all thirty
    assert sum(rows) <= 7 * 4 + 4 * 30


@pytest.mark.parametrize(
    "curve",
    [
        lambda r: r**0.05,
        lambda r: r**8,
        lambda r: torch.atan(5 * (r - 1)) + 1.4,
        lambda r: r + 0.05 * torch.sin(9 * r),
    ],
)
def test_curves_that_are_far_from_straight_are_solved_too(curve):
    found = calibrate(scalar_map(curve), nonlinearity=0.97, progress=False)
    below, above = (abs(curve(torch.tensor(found.scale * f))) for f in (0.98, 1.02))
    assert below < 0.97 < above


@pytest.mark.parametrize("steepness", [0.6, 1.8, 50.0])
def test_a_map_that_is_exactly_linear_up_to_some_norm_is_solved(steepness):
    found = calibrate(scalar_map(lambda r: steepness * torch.relu(r - 1)), progress=False)
    assert steepness * (found.scale - 1) == pytest.approx(0.5, abs=0.012 * steepness * found.scale)


def test_searches_beyond_the_usual_range():
    small = calibrate(scalar_map(lambda r: 100 * r), progress=False)
    assert small.scale == pytest.approx(0.005, rel=0.02)
    large = calibrate(scalar_map(lambda r: 0.1 * r), progress=False)
    assert large.scale == pytest.approx(5.0, rel=0.02)


def test_a_map_that_stays_linear_says_so():
    with pytest.raises(MelboError, match="never rises through 0.5: the map is nearly linear here"):
        calibrate(planted(directions(3, 6), directions(3, 6, 1), lambda c: c), progress=False)


def test_a_map_that_is_noise_at_every_scale_says_so():
    with pytest.raises(MelboError, match="non-linear .* at every scale"):
        calibrate(scalar_map(lambda r: 3.0 * (r > 1e-9)), progress=False)


def test_a_map_without_linear_part_says_so():
    with pytest.raises(MelboError, match="no linear part"):
        calibrate(planted(directions(3, 6), directions(3, 6, 1), lambda c: c**2), progress=False)


def test_a_curve_that_falls_again_carries_a_warning():
    found = calibrate(scalar_map(lambda r: 3 * r * torch.exp(-(r**2))), progress=False)
    # the first crossing
    assert found.scale == pytest.approx(0.1716, rel=0.02)
    assert "not monotone" in found.warning


def test_bad_target_is_refused():
    with pytest.raises(MelboError, match="nonlinearity is 0"):
        calibrate(smooth(), nonlinearity=0, progress=False)


def test_a_rounding_floor_at_small_scales_is_called_that():
    toy = scalar_map(lambda r: r + 0.9 * r / 0.02 * torch.exp(1 - r / 0.02))
    found = calibrate(toy, progress=False)
    # the crossing above the floor
    assert found.scale == pytest.approx(0.5, rel=0.02)
    assert "rounding" in found.warning
