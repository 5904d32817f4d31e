"""How hard to push: the norm R at which the response to a random direction has become half non-linear (METHOD §4)."""

import math
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from scipy.optimize import brentq

from .errors import MelboError
from .linalg import random_rows
from .oracles import Map
from .progress import track

_GRID = tuple(0.02 * 2**k for k in range(7))  # of the stream's norm: 2 % to 128 %


@dataclass(frozen=True)
class Calibration:
    """The scale and how it was found.

    Attributes:
        scale: R, in units of ``h_source``.
        relative: R over the median norm of ``h_source`` (first token left out); None where that is not known.
        nonlinearity: λ, the ratio that R was asked to reach.
        curve: Pairs (R, ratio(R)), ascending in R.
        warning: In plain words, why the scale may not be trusted; None if there is no reason.
    """

    scale: float
    relative: float | None
    nonlinearity: float
    curve: list[tuple[float, float]]
    warning: str | None

    def describe(self) -> dict:
        """All of it, JSON-able."""
        return asdict(self)


def calibrate(map: Map, nonlinearity: float = 0.5, num_directions: int = 30, seed: int = 0, progress: bool = True) -> Calibration:
    """Solve ratio(R) = λ for R, with ratio(R)² = mean over random unit v of ‖Δ(Rv) − R·Jv‖² / ‖R·Jv‖² and J exact.

    The curve is sampled from 2 % to 128 % of the stream's norm, further down to 1e-3 and up to ten times the norm where it has not crossed λ
    by then, and R is found by Brent's method in log R inside the first crossing, to 1 %.

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
        raise MelboError(f"nonlinearity is {nonlinearity}: expected a positive number (0.5 is usual)")
    norm = map.source_norm or 1.0
    low, high = 1e-3, 10 * norm
    directions = random_rows(num_directions, map.d_source, torch.Generator().manual_seed(seed)).to(map.device, map.dtype)
    curve: dict[float, float] = {}
    with track(len(_GRID) + 6, "calibrating R", progress) as bar:
        linear = map.jvp(directions)
        size = linear.norm(dim=-1)
        bar.update()
        if not (size > 0).all():
            raise MelboError("the map has no linear part along some directions, so R cannot be calibrated: give a scale")

        def gap(log_scale: float) -> float:
            scale = math.exp(log_scale)
            off = (map.value(scale * directions) - scale * linear).norm(dim=-1) / (scale * size)
            curve[scale] = off.square().mean().sqrt().item()
            bar.update()
            return curve[scale] - nonlinearity

        for fraction in _GRID:
            gap(math.log(fraction * norm))
        while min(curve.values()) > nonlinearity and min(curve) > 1.001 * low:  # exp∘log rounds
            gap(math.log(max(low, min(curve) / 4)))
        while max(curve.values()) < nonlinearity and max(curve) < 0.999 * high:
            gap(math.log(min(high, max(curve) * 2)))

        points = sorted(curve.items())
        crossings = [(a, b) for (a, p), (b, q) in pairwise(points) if p < nonlinearity <= q]
        if not all(math.isfinite(p) for _, p in points) or not crossings:
            raise MelboError(_no_crossing(points, nonlinearity))
        a, b = crossings[0]
        scale = math.exp(brentq(gap, math.log(a), math.log(b), xtol=0.01, rtol=1e-3))
        gap(math.log(scale))

    points = sorted(curve.items())
    falls = [q for (_, p), (q, r) in pairwise(points) if r < 0.98 * p and q < 8 * scale]
    warning = None
    if falls and falls[-1] < scale:
        warning = f"below R = {falls[-1]:.3g} the curve rises again, as rounding makes it do: float32 is exact; R itself lies above that"
    elif falls:
        warning = f"the curve is not monotone (it falls at R = {falls[0]:.3g}): look at it before trusting R; more directions or prompts steady it"
    return Calibration(scale, scale / map.source_norm if map.source_norm else None, nonlinearity, points, warning)


def _no_crossing(points: list[tuple[float, float]], target: float) -> str:
    (a, p), (b, q) = points[0], points[-1]
    span = f"ratio(R) goes from {p:.3g} at R = {a:.3g} to {q:.3g} at R = {b:.3g} and never rises through {target}"
    if not all(math.isfinite(r) for _, r in points):
        return f"{span}, with values that are not finite: load the model in float32 or bfloat16"
    if q < target:
        return f"{span}: the map is nearly linear here; try target further from source, a smaller nonlinearity, or give a scale"
    return f"{span}: it is non-linear (or noisy) at every scale; load the model in float32, try more prompts, or give a scale"
