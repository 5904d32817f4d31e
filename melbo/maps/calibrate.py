"""Calibration of R: the norm at which the response to random directions is half non-linear.

See docs/method.md §4.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch

from melbo.errors import MelboError, require
from melbo.maps.base import Map
from melbo.maps.calibration import Calibration as Calibration
from melbo.maps.calibration import Point
from melbo.progress import track

# shares of the stream's norm, 2 % to 128 %
_GRID = tuple(0.02 * 2**k for k in range(7))
# directions that draw the curve
_SCOUTS = 4
_USUAL_EVALUATIONS = 3
# smallest ratio whose logarithm is taken
_TINY = 1e-9
# largest log(ratio / λ) that a step is computed from
_FAR = 2.0
# R from which a curve may be drawn, and up to which where the norm of the stream is not known
_LOWEST, _HIGHEST = 1e-3, 1e6
# a curve that falls is drawn again on all directions, with so many scales an octave
_PER_OCTAVE = 4
# a crossing is halved so often, from a quarter of an octave to .07 %
_HALVINGS = 8
# largest quotient of two ratios that far apart on a continuous curve
_LARGEST_STEP = 1.2


def calibrate(
    map: Map,
    nonlinearity: float = 0.5,
    num_directions: int = 30,
    seed: int = 0,
    progress: bool = True,
) -> Calibration:
    """Solve ratio(R) = λ for R (docs/method.md §4).

    ratio(R)² is the mean over random unit v of ‖Δ(Rv) − R·Jv‖² / ‖R·Jv‖², with J exact.

    A few directions draw the curve, from 2 % to 128 % of the stream's norm and as far beyond it as
    it takes to cross λ: 1e-3, and ten times the norm (1e6 where it is not known), at most. From the
    first crossing the secant method gives R to 1 %, on all directions. A curve that falls before it
    crosses is drawn again: R is where it first rises through λ without a jump, else jumps.

    Args:
        map: Δ.
        nonlinearity: λ > 0.
        num_directions: Number of random directions.
        seed: Random seed of the directions.
        progress: Draw a bar.

    Raises:
        MelboError: λ is not positive, Δ has no linear part, or ratio(R) does not cross λ.
    """
    _check(map, nonlinearity)
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
        curve = _draw(lambda scales: ratios(scales, few), map.source_norm, nonlinearity)
        exact = torch.finfo(linear.dtype).eps * (map.source_norm or 1.0)
        scale, solved, warning = _solve(
            lambda scales: ratios(scales, num_directions), curve, nonlinearity, exact
        )

    # R of an adapter is the norm of a matrix, not of the stream
    relative = scale / map.source_norm if map.source_norm and not map.parts else None
    return Calibration(scale, relative, nonlinearity, curve, solved, warning)


def _check(map: Map, nonlinearity: float) -> None:
    """Refuse arguments of `calibrate` that make no sense.

    Raises:
        MelboError: λ is not positive.
    """
    require(Map, "make one with melbo.CausalMap(lm, prompts)", map=map)
    if not nonlinearity > 0:
        raise MelboError(
            f"nonlinearity is {nonlinearity}: expected a positive number (0.5 is usual)"
        )


def _draw(
    ratios: Callable[[list[float]], list[float]], norm: float | None, target: float
) -> list[Point]:
    """The curve on the grid, and as far beyond it as it takes to cross ``target``.

    Args:
        ratios: ratio(R) for each R.
        norm: Norm of the stream, if it is known.
        target: λ.

    Returns:
        Pairs (R, ratio(R)), ascending in R, up to the first that is not finite.
    """
    high = 10 * norm if norm else _HIGHEST
    grid = [share * (norm or 1.0) for share in _GRID]
    curve = list(zip(grid, ratios(grid), strict=True))

    def unfinished() -> bool:
        """Tell whether the low end has yet to come down, as that of a smooth map does."""
        (_, p), (_, q) = curve[:2]
        return p >= target or p > max(0.9 * q, 0.01 * target)

    while curve[0][0] > _LOWEST and unfinished():
        R = max(_LOWEST, curve[0][0] / 4)
        curve.insert(0, (R, ratios([R])[0]))
    while curve[-1][0] < high and max(p for _, p in curve) < target:
        R = min(high, curve[-1][0] * 2)
        curve.append((R, ratios([R])[0]))
    finite = [math.isfinite(p) for _, p in curve]
    return curve if all(finite) else curve[: finite.index(False) + 1]


def _solve(
    ratios: Callable[[list[float]], list[float]], curve: list[Point], target: float, exact: float
) -> tuple[float, list[Point], str | None]:
    """R at the first crossing of ``target``, the points tried on the way, and a warning.

    Args:
        ratios: ratio(R) for each R, on all directions.
        curve: Points near which to look, ascending in R.
        target: λ.
        exact: Size of the rounding of a response.

    Raises:
        MelboError: The curve does not cross ``target``, or ``ratios`` does not reach it.
    """
    finite = [point for point in curve if math.isfinite(point[1])]
    crossings = [(a, b) for a, b in pairwise(finite) if a[1] < target <= b[1]]
    falls = [b[0] for a, b in pairwise(finite) if b[1] < 0.98 * a[1]]
    if not crossings and not falls:
        raise MelboError(_no_crossing(curve, target))
    tried: list[Point] = []
    if crossings and not any(fall <= crossings[0][1][0] for fall in falls):
        scale = _between(ratios, *crossings[0], target, tried)
        if scale is not None:
            return scale, tried, _doubt(finite, scale)
    return _search(ratios, finite, target, exact, tried)


def _between(
    ratios: Callable[[list[float]], list[float]],
    low: Point,
    high: Point,
    target: float,
    tried: list[Point],
) -> float | None:
    """R at the crossing near two points, by the secant method, or None if it is not found."""

    def gap(log_scale: float) -> float:
        R = math.exp(log_scale)
        tried.append((R, ratios([R])[0]))
        return math.log(max(tried[-1][1], _TINY) / target)

    (a, p), (b, q) = low, high
    # a map may be exactly linear up to there
    p = max(p, _TINY)
    slope = math.log(q / p) / math.log(b / a)
    log_scale = _secant(gap, math.log(a) + math.log(target / p) / slope, slope)
    return None if log_scale is None else math.exp(log_scale)


def _search(
    ratios: Callable[[list[float]], list[float]],
    curve: list[Point],
    target: float,
    exact: float,
    tried: list[Point],
) -> tuple[float, list[Point], str | None]:
    """As `_solve`, for a curve that falls or jumps: all of it, upwards, on all directions.

    Raises:
        MelboError: It does not cross ``target``.
    """
    lowest, highest = curve[0][0], curve[-1][0]
    dense: list[Point] = []
    jump: float | None = None
    step = 2 ** (1 / _PER_OCTAVE)
    R = lowest
    while highest * step > R:
        scales = [R * step**k for k in range(_PER_OCTAVE)]
        new = list(zip(scales, ratios(scales), strict=True))
        tried += new
        before, R = dense[-1:], R * 2
        dense += [point for point in new if math.isfinite(point[1])]
        for low, high in pairwise(before + dense[len(dense) - len(new) :]):
            if low[1] < target <= high[1]:
                scale, jumps = _halve(ratios, low, high, target, tried)
                if not jumps:
                    below = [point for point in dense if point[0] < scale]
                    return scale, tried, _reason(ratios, below, curve, scale, exact, target)
                jump = jump or scale
    if jump is None:
        raise MelboError(_no_crossing(dense or curve, target))
    warning = (
        f"the map is discontinuous: the ratio jumps through {target} at R = {jump:.3g}, and rises "
        "through it nowhere else; look at the curve before trusting R, or give a scale"
    )
    return jump, tried, warning


def _halve(
    ratios: Callable[[list[float]], list[float]],
    low: Point,
    high: Point,
    target: float,
    tried: list[Point],
) -> tuple[float, bool]:
    """R at a rise through ``target`` between two points, and whether the curve jumps there."""
    for _ in range(_HALVINGS):
        R = math.sqrt(low[0] * high[0])
        middle = (R, ratios([R])[0])
        tried.append(middle)
        low, high = (middle, high) if middle[1] < target else (low, middle)
    return math.sqrt(low[0] * high[0]), high[1] > _LARGEST_STEP * max(low[1], _TINY)


def _reason(
    ratios: Callable[[list[float]], list[float]],
    below: list[Point],
    curve: list[Point],
    scale: float,
    exact: float,
    target: float,
) -> str | None:
    """Reason why a curve lies high, or falls, below ``scale``; None if it does not.

    Args:
        ratios: ratio(R) for each R, on all directions.
        below: Points of the curve below ``scale``, on all directions, ascending in R.
        curve: The curve on the first few directions.
        scale: R.
        exact: Size of the rounding of a response.
        target: λ.
    """
    falls = [(a, b) for a, b in pairwise(below) if b[1] < 0.98 * a[1] and a[1] > 0.01 * target]
    if not falls:
        return _doubt(curve, scale)
    R, p = falls[-1][0]
    # what rounding adds to a ratio goes with 1/R
    if p < 30 * exact / R:
        return (
            f"below R = {R:.3g} the curve rises again, as rounding makes it do: "
            "float32 is exact; R itself lies above that"
        )
    first = below[0]
    rises = [(b[1] - a[1], a, b) for a, b in pairwise(below) if b[1] > _LARGEST_STEP * a[1]]
    if first[1] >= 0.1 * target:
        place = f"the ratio is still {first[1]:.3g} at R = {first[0]:.3g}"
    elif rises and _jumps(ratios, *max(rises)[1:]):
        place = f"the ratio jumps near R = {max(rises)[2][0]:.3g}"
    else:
        return _doubt(curve, scale) or _not_monotone(R)
    return f"the map is discontinuous ({place}), as a mixture of experts is; R itself lies above"


def _jumps(ratios: Callable[[list[float]], list[float]], low: Point, high: Point) -> bool:
    """Tell whether half of a rise is left when its place is halved again and again."""
    whole = high[1] - low[1]
    for _ in range(_HALVINGS):
        R = math.sqrt(low[0] * high[0])
        middle = (R, ratios([R])[0])
        steeper = middle[1] - low[1] < high[1] - middle[1]
        low, high = (middle, high) if steeper else (low, middle)
    # several directions may jump, each at a place of its own
    return high[1] - low[1] > 0.25 * whole


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
    return _not_monotone(falls[0]) if falls else None


def _not_monotone(R: float) -> str:
    return (
        f"the curve is not monotone (it falls at R = {R:.3g}): "
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
