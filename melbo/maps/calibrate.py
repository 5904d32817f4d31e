"""How hard to push: the norm R at which the response to a random direction has become half non-linear (METHOD §4)."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch

from melbo.errors import MelboError
from melbo.maps.base import Map
from melbo.progress import track

_GRID = tuple(0.02 * 2**k for k in range(7))  # of the stream's norm: 2 % to 128 %
_SCOUTS = 4  # directions that the grid is looked at with
_USUAL_EVALUATIONS = 3
_TINY = 1e-9  # a ratio that counts as none
_FAR = 2.0  # of log ratio / λ


@dataclass(frozen=True)
class Calibration:
    """The scale and how it was found.

    Attributes:
        scale: R, in units of ``h_source``.
        relative: R over the median norm of ``h_source`` (first token left out); None where that is not known.
        nonlinearity: λ, the ratio that R was asked to reach.
        curve: Pairs (R, ratio(R)) over the whole range, ascending in R, on the first few directions: the shape of the curve.
        solved: Pairs (R, ratio(R)) on all directions, in the order in which they were tried; R follows from the last.
        warning: In plain words, why the scale may not be trusted; None if there is no reason.
    """

    scale: float
    relative: float | None
    nonlinearity: float
    curve: list[tuple[float, float]]
    solved: list[tuple[float, float]]
    warning: str | None

    def describe(self) -> dict:
        """All of it, JSON-able."""
        return asdict(self)


def calibrate(
    map: Map,
    nonlinearity: float = 0.5,
    num_directions: int = 30,
    seed: int = 0,
    progress: bool = True,
) -> Calibration:
    """Solve ratio(R) = λ for R, with ratio(R)² = mean over random unit v of ‖Δ(Rv) − R·Jv‖² / ‖R·Jv‖² and J exact.

    A few of the directions show the curve from 2 % to 128 % of the stream's norm, all scales in one batch, and further down to 1e-3 and up to
    ten times the norm where it has not crossed λ by then. From its first crossing, the secant method on all directions, in log R and log ratio
    (where the curve is nearly straight), gives R to 1 %.

    Args:
        map: Δ.
        nonlinearity: λ > 0.
        num_directions: How many random directions.
        seed: Of those directions.
        progress: Draw a bar.

    Raises:
        MelboError: λ is not positive, Δ has no linear part, or ratio(R) does not cross λ.
    """
    if not nonlinearity > 0:
        raise MelboError(
            f"nonlinearity is {nonlinearity}: expected a positive number (0.5 is usual)"
        )
    norm = map.source_norm or 1.0
    low, high = 1e-3, 10 * norm
    directions = map.probes(num_directions, torch.Generator().manual_seed(seed))
    with track(2 + _USUAL_EVALUATIONS, "calibrating R", progress) as bar:
        linear = map.jvp(directions)
        bar.update()
        if not (linear.norm(dim=-1) > 0).all():
            raise MelboError(
                "the map has no linear part along some directions, so R cannot be calibrated: give a scale"
            )

        def ratios(scales: list[float], num: int) -> list[float]:
            """ratio(R) for each R, on the first ``num`` directions."""
            R = torch.tensor(scales).to(linear)[:, None, None]
            v, Jv = directions[:num], linear[:num]
            off = map.value((R * v).flatten(0, 1)).view(len(scales), num, -1) - R * Jv
            bar.update()
            return (
                (off.norm(dim=-1) / (R[..., 0] * Jv.norm(dim=-1))).square().mean(-1).sqrt().tolist()
            )

        few = min(_SCOUTS, num_directions)
        grid = [fraction * norm for fraction in _GRID]
        curve = dict(zip(grid, ratios(grid, few), strict=True))
        while min(curve.values()) > nonlinearity and min(curve) > low:
            R = max(low, min(curve) / 4)
            curve[R] = ratios([R], few)[0]
        while max(curve.values()) < nonlinearity and max(curve) < high:
            R = min(high, max(curve) * 2)
            curve[R] = ratios([R], few)[0]

        points = sorted(curve.items())
        crossings = [(a, b) for a, b in pairwise(points) if a[1] < nonlinearity <= b[1]]
        if not all(math.isfinite(p) for _, p in points) or not crossings:
            raise MelboError(_no_crossing(points, nonlinearity))
        solved: list[tuple[float, float]] = []

        def gap(log_scale: float) -> float:
            solved.append((math.exp(log_scale), ratios([math.exp(log_scale)], num_directions)[0]))
            return math.log(max(solved[-1][1], _TINY) / nonlinearity)

        (a, p), (b, q) = crossings[0]
        p = max(p, _TINY)  # a map may be exactly linear up to there
        slope = math.log(q / p) / math.log(b / a)
        log_scale = _secant(gap, math.log(a) + math.log(nonlinearity / p) / slope, slope)
        if log_scale is None:
            raise MelboError(_no_crossing(sorted(solved), nonlinearity))
        scale = math.exp(log_scale)

    falls = [q for (_, p), (q, r) in pairwise(points) if r < 0.98 * p and q < 8 * scale]
    warning = None
    if falls and falls[-1] < scale:
        warning = f"below R = {falls[-1]:.3g} the curve rises again, as rounding makes it do: float32 is exact; R itself lies above that"
    elif falls:
        warning = f"the curve is not monotone (it falls at R = {falls[0]:.3g}): look at it before trusting R; more directions or prompts steady it"
    relative = (
        scale / map.source_norm if map.source_norm and not map.parts else None
    )  # R of an adapter is the norm of a matrix
    return Calibration(scale, relative, nonlinearity, points, solved, warning)


def _secant(
    gap: Callable[[float], float], x: float, slope: float, tol: float = 0.01, most: int = 12
) -> float | None:
    """A zero of ``gap``, from ``x`` and a guess of its slope there, to ``tol``; None if it is not found in ``most`` evaluations.

    A step goes no further than a factor of two, and not out of the interval in which the sign is known to change. A short
    step only counts where ``gap`` is small too: the slope may be a bad guess.
    """
    below, above = -math.inf, math.inf
    before: tuple[float, float] | None = None
    for _ in range(most):
        y = gap(x)
        if not math.isfinite(y):
            return None
        below, above = (x, above) if y < 0 else (below, x)
        y = min(max(y, -_FAR), _FAR)  # of a point far off only the side is used
        if before is not None:
            slope = (y - before[1]) / (x - before[0])
        new = (
            x - min(max(y / slope, -math.log(2)), math.log(2))
            if slope > 0
            else x - math.copysign(math.log(2), y)
        )
        if not below < new < above:
            new = (below + above) / 2
        if abs(new - x) < tol and abs(y) < (tol if before is None else 10 * tol):
            return new
        before, x = (x, y), new
    return None


def _no_crossing(points: list[tuple[float, float]], target: float) -> str:
    (a, p), (b, q) = points[0], points[-1]
    span = f"ratio(R) goes from {p:.3g} at R = {a:.3g} to {q:.3g} at R = {b:.3g} and never rises through {target}"
    if not all(math.isfinite(r) for _, r in points):
        return f"{span}, with values that are not finite: load the model in float32 or bfloat16"
    if q < target:
        return f"{span}: the map is nearly linear here; try target further from source, a smaller nonlinearity, or give a scale"
    return f"{span}: it is non-linear (or noisy) at every scale; load the model in float32, try more prompts, or give a scale"
