"""Calibration of R: the norm at which the response to random directions is half non-linear.

See docs/method.md §4.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch

from melbo.errors import MelboError
from melbo.maps.base import Map
from melbo.progress import track

Point = tuple[float, float]  # (R, ratio(R))

# shares of the stream's norm, 2 % to 128 %
_GRID = tuple(0.02 * 2**k for k in range(7))
# directions that draw the curve
_SCOUTS = 4
_USUAL_EVALUATIONS = 3
# smallest ratio whose logarithm is taken
_TINY = 1e-9
# largest log(ratio / λ) that a step is computed from
_FAR = 2.0


@dataclass(frozen=True)
class Calibration:
    """A scale, and the curve that it was read from.

    Attributes:
        scale: R, in units of ``h_source``.
        relative: R over the median norm of ``h_source`` (first tokens left out); None where that
            norm is not known.
        nonlinearity: λ, the ratio that R was asked to reach.
        curve: Pairs (R, ratio(R)) over the whole range, ascending in R, on the first few
            directions: the shape of the curve.
        solved: Pairs (R, ratio(R)) on all directions, in the order in which they were tried; R
            follows from the last.
        warning: In plain words, why the scale may not be trusted; None if there is no reason.
    """

    scale: float
    relative: float | None
    nonlinearity: float
    curve: list[Point]
    solved: list[Point]
    warning: str | None

    def describe(self) -> dict[str, Any]:
        """All attributes, JSON-able."""
        return asdict(self)


def calibrate(
    map: Map,
    nonlinearity: float = 0.5,
    num_directions: int = 30,
    seed: int = 0,
    progress: bool = True,
) -> Calibration:
    """Solve ratio(R) = λ for R (docs/method.md §4).

    ratio(R)² is the mean over random unit v of ‖Δ(Rv) − R·Jv‖² / ‖R·Jv‖², with J exact.

    A few of the directions draw the curve from 2 % to 128 % of the stream's norm, all scales in one
    batch. Where it has not crossed λ by then, they go on down to 1e-3 and up to ten times the norm.
    From the first crossing the secant method gives R to 1 %, on all directions and in log R and
    log ratio, in which the curve is nearly straight.

    Args:
        map: Δ.
        nonlinearity: λ > 0.
        num_directions: Number of random directions.
        seed: Random seed of the directions.
        progress: Draw a bar.

    Raises:
        MelboError: λ is not positive, Δ has no linear part, or ratio(R) does not cross λ.
    """
    if not nonlinearity > 0:
        raise MelboError(
            f"nonlinearity is {nonlinearity}: expected a positive number (0.5 is usual)"
        )
    directions = map.probes(num_directions, torch.Generator().manual_seed(seed))
    with track(2 + _USUAL_EVALUATIONS, "calibrating R", progress) as bar:
        linear = map.jvp(directions)
        bar.update()
        if not (linear.norm(dim=-1) > 0).all():
            raise MelboError(
                "the map has no linear part along some directions, so R cannot be calibrated: "
                "give a scale"
            )

        def ratios(scales: list[float], num: int) -> list[float]:
            """ratio(R) for each R, on the first ``num`` directions."""
            R = torch.tensor(scales).to(linear)[:, None, None]
            v, Jv = directions[:num], linear[:num]
            off = map.value((R * v).flatten(0, 1)).view(len(scales), num, -1) - R * Jv
            bar.update()
            off_share = off.norm(dim=-1) / (R[..., 0] * Jv.norm(dim=-1))
            found: list[float] = off_share.square().mean(-1).sqrt().tolist()
            return found

        few = min(_SCOUTS, num_directions)
        curve = _draw(lambda scales: ratios(scales, few), map.source_norm or 1.0, nonlinearity)
        scale, solved = _solve(lambda R: ratios([R], num_directions)[0], curve, nonlinearity)

    # R of an adapter is the norm of a matrix, not of the stream
    relative = scale / map.source_norm if map.source_norm and not map.parts else None
    return Calibration(scale, relative, nonlinearity, curve, solved, _doubt(curve, scale))


def _draw(ratios: Callable[[list[float]], list[float]], norm: float, target: float) -> list[Point]:
    """The curve on the grid, and as far beyond it as it takes to cross ``target``.

    Args:
        ratios: ratio(R) for each R.
        norm: Norm of the stream.
        target: λ.

    Returns:
        Pairs (R, ratio(R)), ascending in R.
    """
    low, high = 1e-3, 10 * norm
    grid = [share * norm for share in _GRID]
    curve = dict(zip(grid, ratios(grid), strict=True))
    while min(curve.values()) > target and min(curve) > low:
        R = max(low, min(curve) / 4)
        curve[R] = ratios([R])[0]
    while max(curve.values()) < target and max(curve) < high:
        R = min(high, max(curve) * 2)
        curve[R] = ratios([R])[0]
    return sorted(curve.items())


def _solve(
    ratio: Callable[[float], float], curve: list[Point], target: float
) -> tuple[float, list[Point]]:
    """R at the first crossing of ``target``, and the points tried on the way to it.

    Args:
        ratio: ratio(R).
        curve: Points near which to look, ascending in R.
        target: λ.

    Raises:
        MelboError: The curve does not cross ``target``, or ``ratio`` does not reach it.
    """
    crossings = [(a, b) for a, b in pairwise(curve) if a[1] < target <= b[1]]
    if not crossings or not all(math.isfinite(p) for _, p in curve):
        raise MelboError(_no_crossing(curve, target))
    tried: list[Point] = []

    def gap(log_scale: float) -> float:
        R = math.exp(log_scale)
        tried.append((R, ratio(R)))
        return math.log(max(tried[-1][1], _TINY) / target)

    (a, p), (b, q) = crossings[0]
    # a map may be exactly linear up to there
    p = max(p, _TINY)
    slope = math.log(q / p) / math.log(b / a)
    log_scale = _secant(gap, math.log(a) + math.log(target / p) / slope, slope)
    if log_scale is None:
        raise MelboError(_no_crossing(sorted(tried), target))
    return math.exp(log_scale), tried


def _secant(
    gap: Callable[[float], float], x: float, slope: float, tol: float = 0.01, most: int = 12
) -> float | None:
    """A zero of ``gap`` by the secant method, or None if it is not found.

    A step goes no further than a factor of two, and not out of the interval in which the sign is
    known to change. A short step only counts where ``gap`` is small too: the slope may be a bad
    guess.

    Args:
        gap: log(ratio(R) / λ), a function of log R.
        x: First guess.
        slope: Guess of the slope of ``gap`` at ``x``.
        tol: Accuracy of the zero.
        most: Largest number of evaluations.
    """
    below, above = -math.inf, math.inf
    longest = math.log(2)
    before: tuple[float, float] | None = None
    for _ in range(most):
        y = gap(x)
        if not math.isfinite(y):
            return None
        below, above = (x, above) if y < 0 else (below, x)
        # the size of a large gap says little, its sign enough
        y = min(max(y, -_FAR), _FAR)
        if before is not None:
            slope = (y - before[1]) / (x - before[0])
        if slope > 0:
            new = x - min(max(y / slope, -longest), longest)
        else:
            new = x - math.copysign(longest, y)
        if not below < new < above:
            new = (below + above) / 2
        if abs(new - x) < tol and abs(y) < (tol if before is None else 10 * tol):
            return new
        before, x = (x, y), new
    return None


def _doubt(curve: list[Point], scale: float) -> str | None:
    """Reason why ``scale`` may not be trusted, from falls of the curve; None if there is none."""
    falls = [q for (_, p), (q, r) in pairwise(curve) if r < 0.98 * p and q < 8 * scale]
    if not falls:
        return None
    if falls[-1] < scale:
        return (
            f"below R = {falls[-1]:.3g} the curve rises again, as rounding makes it do: "
            "float32 is exact; R itself lies above that"
        )
    return (
        f"the curve is not monotone (it falls at R = {falls[0]:.3g}): "
        "look at it before trusting R; more directions or prompts steady it"
    )


def _no_crossing(points: list[Point], target: float) -> str:
    """Message for a curve that does not cross ``target``, with what to do about it."""
    (a, p), (b, q) = points[0], points[-1]
    span = (
        f"ratio(R) goes from {p:.3g} at R = {a:.3g} to {q:.3g} at R = {b:.3g} "
        f"and never rises through {target}"
    )
    if not all(math.isfinite(r) for _, r in points):
        return f"{span}, with values that are not finite: load the model in float32 or bfloat16"
    if q < target:
        return (
            f"{span}: the map is nearly linear here; try target further from source, "
            "a smaller nonlinearity, or give a scale"
        )
    return (
        f"{span}: it is non-linear (or noisy) at every scale; "
        "load the model in float32, try more prompts, or give a scale"
    )
