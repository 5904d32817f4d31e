import itertools
import math

import pytest
import torch
from cases import tiny_model
from toys import directions, planted, smooth

from melbo import CausalMap, FunctionMap, MelboError, Prompts, calibrate
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


def test_a_bump_below_the_grid_holds_the_first_crossing():
    def bump(r):
        return r + 0.9 * r / 0.02 * torch.exp(1 - r / 0.02)

    found = calibrate(scalar_map(bump), progress=False)
    assert bump(torch.tensor(found.scale)).item() == pytest.approx(0.5, rel=0.02)
    assert found.scale < 0.01
    assert "not monotone" in found.warning


def test_a_rounding_floor_at_small_scales_is_called_that():
    def rounded(theta):
        return theta * (1 + theta.norm(dim=-1, keepdim=True)) + 1 - 1

    toy = FunctionMap(rounded, 6, 6, torch.bfloat16)
    toy.jvp = lambda v: v
    found = calibrate(toy, progress=False)
    # the crossing above the floor
    assert found.scale == pytest.approx(0.5, rel=0.05)
    assert "rounding" in found.warning


@pytest.mark.parametrize("root", [3e-3, 0.04, 1.0, 80.0, 3e4])
def test_a_root_is_found_however_far_it_is(root):
    found = calibrate(scalar_map(lambda r: 0.5 * r / root), progress=False)
    assert found.scale == pytest.approx(root, rel=0.02)
    assert found.warning is None


def test_a_known_norm_still_bounds_the_search():
    toy = scalar_map(lambda r: 0.5 * r / 80)
    toy.source_norm = 1.0
    with pytest.raises(MelboError, match="to 0.0625 at R = 10 .*nearly linear"):
        calibrate(toy, progress=False)


@pytest.mark.parametrize("at", [0.0005, 0.002, 0.01, 0.1])
@pytest.mark.parametrize("size", [0.4, 3.0])
def test_a_jump_is_told_from_the_continuous_root_above_it(at, size):
    # the response jumps at one norm, so that the ratio jumps there and falls as 1/R above
    toy = scalar_map(lambda r: 0.3 * r + size * at / r * (r > at))
    found = calibrate(toy, progress=False)
    # roots of .3 R + size·at / R = .5; without any, the ratio passes ½ at the jump alone
    under = 0.25 - 1.2 * size * at
    root = (0.5 + under**0.5) / 0.6 if under > 0 else at
    assert found.scale == pytest.approx(root, rel=0.02)
    assert "discontinuous" in found.warning


def test_a_jump_is_the_root_where_there_is_no_other():
    found = calibrate(scalar_map(lambda r: 0.1 * r / (1 + r) + 0.8 * (r > 0.3)), progress=False)
    assert found.scale == pytest.approx(0.3, rel=0.02)
    assert "the ratio jumps through 0.5 at R = 0.3," in found.warning


def test_a_curve_that_is_not_finite_far_out_is_solved_below():
    found = calibrate(
        scalar_map(lambda r: 0.004 * r + torch.where(r > 1000, torch.inf, 0.0)), progress=False
    )
    assert found.scale == pytest.approx(125.0, rel=0.02)


def dense_curve(map, scales):
    """ratio(R) on the thirty directions of `calibrate`, scale by scale."""
    v = map.probes(30, torch.Generator().manual_seed(0))
    linear = map.jvp(v)
    for R in scales:
        off = (map.value(R * v) - R * linear).norm(dim=-1) / (R * linear.norm(dim=-1))
        yield R, off.square().mean().sqrt().item()


@pytest.mark.parametrize(
    ("name", "continuous"),
    [
        ("mixtral", True),
        ("qwen3_moe", True),
        ("olmoe", True),
        ("gpt_oss", True),
        ("granitemoe", True),
        ("deepseek_v3", False),
    ],
)
def test_mixtures_of_experts_are_discontinuous_and_have_a_scale_all_the_same(name, continuous):
    prompts = Prompts(("a", "b"), ((5, 6, 7, 8, 9, 10, 11), (12, 13, 14, 15)))
    map = CausalMap(tiny_model(name), prompts, 1, 3)
    found = calibrate(map, progress=False)
    assert "discontinuous" in found.warning
    (_, below), (_, above) = dense_curve(map, [0.999 * found.scale, 1.001 * found.scale])
    assert below < 0.5 < above
    assert (above / below < 1.2) == continuous
    step = 2**0.125
    lower = [found.scale / 1.001 / step**k for k in range(72)]
    curve = sorted(dense_curve(map, lower))
    rises = [(p, q) for (_, p), (_, q) in itertools.pairwise(curve) if p < 0.5 <= q]
    # what rises through λ below R does so in one step
    assert all(q > 1.2 * p for p, q in rises)
    assert continuous or not rises


def test_a_dense_model_has_neither_jump_nor_warning():
    prompts = Prompts(("a", "b"), ((5, 6, 7, 8, 9, 10, 11), (12, 13, 14, 15)))
    found = calibrate(CausalMap(tiny_model("llama"), prompts, 1, 3), progress=False)
    assert found.warning is None
