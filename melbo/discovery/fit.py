"""Fit: a map and a method in, features and an account of how they came about out."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import torch

from melbo.errors import MelboError
from melbo.features.adapters import AdapterSet
from melbo.features.directions import FeatureSet
from melbo.maps.adapter import AdapterMap
from melbo.maps.base import Map
from melbo.maps.model_map import ModelMap
from melbo.maths.geometry import stability
from melbo.maths.linalg import random_rows
from melbo.maths.transcoder import Factors
from melbo.methods import Direct, Iterative, Method
from melbo.methods.iterate import Record, Status, iterate
from melbo.progress import track
from melbo.records import versions

_BLOW_UP = (
    "the response of one feature is {:.0f} times the median one: it may win by blowing up norms; "
    "compare with normalise_target, skip_first or a smaller scale"
)


@dataclass(frozen=True)
class Fit:
    """What a fit gives.

    Attributes:
        features: The features, in the method's own order.
        status: How it ended; ``status.remedy`` says what to make of it.
        history: One record a sweep: ``objective``, ``explained`` (bᵀK⁻¹b), ``change``, ``seconds``.
        stats: ``explained`` of the features returned, ``dominance`` (largest response over the median one), ``seconds``, ``sweeps``.
        warning: In plain words, why the strongest feature may not be what it seems; None if there is no reason.
    """

    features: FeatureSet
    status: Status
    history: list[Record]
    stats: dict[str, float]
    warning: str | None


def fit(
    map: Map,
    method: Method,
    seed: int = 0,
    callback: Callable[[int, Record], None] | None = None,
    progress: bool = True,
) -> Fit:
    """Find the features of a map.

    Args:
        map: Δ, a `CausalMap` or a `FunctionMap`.
        method: `Linear`, `ProjectedLinear`, `Quadratic`, `Exponential`, `Random`.
        seed: Of everything random in it.
        callback: Called with the sweep's number and its record.
        progress: Draw a bar.

    Ctrl-C after the first finished sweep gives the features of the last one, with `Status.INTERRUPTED`.

    Raises:
        MelboError: Settings that cannot work on this map, or a response that is not finite from the start (names the layer).
    """
    if not isinstance(method, (Iterative, Direct)):
        raise MelboError(
            f"got {type(method).__name__}, expected one of melbo's methods (Linear, Quadratic, Exponential …)"
        )
    method.check(map)
    generator = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    history: list[Record] = []
    if isinstance(method, Iterative):
        factors, status, history = _iterative(map, method, generator, callback, progress)
    else:
        factors, status = method.solve(map, generator), Status.DIRECT
    if not _finite(factors):
        probe = random_rows(1, map.d_source, torch.Generator().manual_seed(0))
        where = map.locate_nonfinite(method.scale * probe)
        raise MelboError(
            f"{where} is not finite at scale {method.scale:g}: lower the scale, or load the model in float32 or bfloat16"
        )

    size = factors.b.abs()
    dominance = (size.max() / size.median()).item() if size.median() > 0 else 1.0
    warning = _BLOW_UP.format(dominance) if dominance > 10 else None
    stats = {
        "explained": factors.explained,
        "dominance": dominance,
        "seconds": time.perf_counter() - start,
        "sweeps": len(history),
    }
    meta = {
        "map": map.describe(),
        "method": method.describe(),
        "seed": seed,
        "fit": {
            "status": status.name.lower(),
            "remedy": status.remedy,
            "history": history,
            "stats": stats,
            "warning": warning,
        },
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
    }
    source, target = (map.source, map.target) if isinstance(map, ModelMap) else (0, 1)
    V, U, alpha = (t.cpu() for t in (factors.V, factors.U, factors.alpha))
    features = feature_kind(map)(V, U, alpha, float(method.scale), source, target, meta)
    return Fit(features, status, history, stats, warning)


def feature_kind(map: Map) -> type[FeatureSet]:
    """Kind of the features of a map: directions, or adapters."""
    return AdapterSet if isinstance(map, AdapterMap) else FeatureSet


def fit_seeds(map: Map, method: Method, seeds: int, seed: int = 0, progress: bool = True) -> Fit:
    """Fit with several seeds, and say of each feature of the first fit how well the others found it again.

    For a feature v this is the mean over the other seeds of max ⟨v, v'⟩ over that seed's features v', of |⟨v, v'⟩| where the method leaves signs
    arbitrary (`Method.signed`). It rises with the number of features to match, about as √(2 ln m / d) for directions that have nothing to do
    with them, so it says something only beside the baseline, the same for random directions. That baseline knows of no subspace that all seeds
    share: features that are arbitrary within one stand above it too. A method that draws nothing at random gives 1.

    Args:
        map: Δ, a `CausalMap` or a `FunctionMap`.
        method: As for `fit`.
        seeds: How many fits; with 1 this is `fit`.
        seed: Of the first; the others have seed + 1, seed + 2, …
        progress: Draw bars.

    Returns:
        The fit with ``seed``. Its features' ``meta["stability"]``, JSON-able, holds ``seeds`` (finished fits), ``cosine`` (of each feature, see
        above), ``mean`` (of them), ``baseline``, ``signed``, and ``explained`` (bᵀK⁻¹b of each fit, squared units of Δ).

    Ctrl-C during the first fit is as in `fit`, and no other follows; during a later one it keeps the fits that are finished: stability is over
    those, and left out where there is only the first.

    Raises:
        MelboError: Fewer than one seed; and as `fit`.
    """
    if seeds < 1:
        raise MelboError(
            f"got seeds={seeds}: expected at least 1; it takes 2 to see what is found again"
        )
    fits: list[Fit] = []
    try:
        with track(seeds, "seeds", progress and seeds > 1) as bar:
            for i in range(seeds):
                fits.append(fit(map, method, seed + i, progress=progress))
                bar.update()
                if fits[-1].status is Status.INTERRUPTED:
                    break
    except KeyboardInterrupt:  # before the first sweep of a fit
        if not fits:
            raise
    first, finished = fits[0], [done for done in fits if done.status is not Status.INTERRUPTED]
    if len(finished) < 2:
        return first
    found = stability([done.features.canonical for done in finished], method.signed)
    about = {
        "seeds": len(finished),
        "cosine": found.cosine.tolist(),
        "mean": found.cosine.mean().item(),
        "baseline": found.baseline,
        "signed": method.signed,
        "explained": [done.stats["explained"] for done in finished],
    }
    return replace(first, features=first.features.with_meta(stability=about))


def _iterative(
    map: Map,
    method: Iterative,
    generator: torch.Generator,
    callback: Callable[[int, Record], None] | None,
    progress: bool,
) -> tuple[Factors, Status, list[Record]]:
    """The factors of the last finished sweep, computed afresh where that can be done."""
    run = iterate(
        lambda state: method.step(map, state),
        method.init(map, generator),
        max_steps=method.max_steps,
        tol=method.tol,
        callback=callback,
        progress=progress,
    )
    last, status = run.state.found, run.status
    try:
        factors = method.finish(map, run.state)
    except KeyboardInterrupt:
        if last is None:
            raise
        return last, Status.INTERRUPTED, run.history
    if not _finite(factors) and last is not None:  # the last step led where Δ is not finite
        return last, Status.NON_FINITE, run.history
    return factors, status, run.history


def _finite(factors: Factors) -> bool:
    return all(bool(torch.isfinite(part).all()) for part in (factors.V, factors.U, factors.alpha))
