"""Fit: features of a map by a method, and an account of how they came about."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import torch

from melbo.display.figures import Curve, draw_curves, finished
from melbo.display.shown import Record as Row
from melbo.display.shown import Shown, Table, number
from melbo.errors import MelboError, require
from melbo.features.adapters import AdapterSet
from melbo.features.directions import FeatureSet
from melbo.maps.adapter import AdapterMap
from melbo.maps.base import Map
from melbo.maps.calibrate import calibrate
from melbo.maps.calibration import Calibration
from melbo.maps.model_map import ModelMap
from melbo.maths.geometry import stability
from melbo.maths.linalg import random_rows
from melbo.maths.transcoder import Factors
from melbo.methods import Direct, Iterative, Method
from melbo.methods.iterate import Record, Status, advice, iterate
from melbo.progress import track
from melbo.records import versions

if TYPE_CHECKING:
    from melbo.display.picture import Picture

_BLOW_UP = (
    "the response of one feature is {:.0f} times the median one: it may win by blowing up norms; "
    "compare with normalise_target, skip_first or a smaller scale"
)


@dataclass(frozen=True, repr=False)
class Fit(Shown):
    """Result of a fit.

    Attributes:
        features: The features, in the method's own order.
        status: Reason why the fit ended; ``features.meta["fit"]["remedy"]`` says what to do next.
        history: One record a sweep: ``objective``, ``explained`` (2αᵀb − αᵀKα), ``change`` and
            ``seconds``.
        stats: ``explained`` of the features returned (squared units of Δ), ``dominance``
            (largest response over the median one), ``seconds``, ``sweeps``.
        warning: Reason, in plain words, to distrust the strongest feature; None if there is none.
        calibration: Calibration of the scale, where the method came without one.
    """

    features: FeatureSet
    status: Status
    history: list[Record]
    stats: dict[str, float]
    warning: str | None
    calibration: Calibration | None = None

    def plot(self) -> "Picture":
        """See `Shown.plot`; explained amount and objective of every sweep.

        A method without sweeps shows its features instead.
        """
        if not self.history:
            return self.features.plot()
        explained, objective = (
            [record[key] for record in self.history] for key in ("explained", "objective")
        )
        curves = [
            Curve("explained amount", explained, self.stats["explained"], "features kept"),
            Curve("objective", objective),
        ]
        sweeps = range(1, len(self.history) + 1)
        return finished(draw_curves((6.4, 4.2), "sweep", sweeps, curves))

    def _table(self) -> Table:
        features = self.features
        title = (
            f"{len(features)} features at R = {number(features.scale)} "
            f"explain {number(self.stats['explained'])}"
        )
        names = ("sweep", "objective", "explained", "change", "seconds")
        warnings = [f"Warning: {self.warning}"] if self.warning else []
        notes = [features.meta["fit"]["remedy"], *warnings]
        return Table.of(title, self._records(), {name: name for name in names}, notes)

    def _records(self) -> Sequence[Row]:
        """Sweeps."""
        return [{"sweep": i + 1, **record} for i, record in enumerate(self.history)]


def fit(
    map: Map,
    method: Method,
    seed: int = 0,
    callback: Callable[[int, Record], None] | None = None,
    progress: bool = True,
) -> Fit:
    """Find the features of a map.

    Ctrl-C after the first finished sweep gives the features of the last one, with
    `Status.INTERRUPTED`.

    Args:
        map: Δ: a `CausalMap`, an `AdapterMap` or a `FunctionMap`.
        method: `Exponential`, `Linear`, `Quadratic` or any other of melbo's methods; its scale is
            calibrated if it has none.
        seed: Random seed.
        callback: Function that is called after each sweep with its number and its record.
        progress: Whether to draw a bar.

    Raises:
        MelboError: The settings cannot work on this map, or a response is not finite from the start
            (names the layer).
    """
    method, calibration = _calibrated(map, method, seed, progress)
    fitted = _fit(map, method, seed, callback, progress)
    return _with_calibration(fitted, calibration)


def _calibrated(
    map: Map, method: Method, seed: int, progress: bool
) -> tuple[Iterative | Direct, Calibration | None]:
    """The method with a scale, and its calibration where it came without one.

    Settings that cannot work are refused before any time is spent on them.

    Raises:
        MelboError: The map is none, or the settings cannot work on it.
    """
    require(Map, "make one with melbo.CausalMap(lm, prompts)", map=map)
    if not isinstance(method, (Iterative, Direct)):
        raise MelboError(
            f"got {type(method).__name__}, expected one of melbo's methods "
            "(Linear, Quadratic, Exponential …)"
        )
    if method.scale is not None:
        method.check(map)
        return method, None
    replace(method, scale=1.0).check(map)
    found = calibrate(map, seed=seed, progress=progress)
    return replace(method, scale=found.scale), found


def _with_calibration(fitted: Fit, calibration: Calibration | None) -> Fit:
    """The fit with the calibration of its scale, if there was one."""
    if calibration is None:
        return fitted
    features = fitted.features.with_meta(calibration=calibration.describe())
    return replace(fitted, features=features, calibration=calibration)


def _fit(
    map: Map,
    method: Iterative | Direct,
    seed: int,
    callback: Callable[[int, Record], None] | None,
    progress: bool,
) -> Fit:
    """See `fit`; the method has a scale.

    Raises:
        MelboError: See `fit`.
    """
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
            f"{where} is not finite at scale {method.scale:g}: "
            "lower the scale, or load the model in float32 or bfloat16"
        )
    if status is Status.NON_FINITE and not history:
        raise MelboError(
            f"the gradient of the first step is not finite at scale {method.scale:g}, though the "
            "response is: change the scale, or load the model in float32 or bfloat16"
        )
    seconds = time.perf_counter() - start
    return _account(map, method, seed, factors, status, history, seconds)


def _account(
    map: Map,
    method: Method,
    seed: int,
    factors: Factors,
    status: Status,
    history: list[Record],
    seconds: float,
) -> Fit:
    """Factors as features, with a record of how they came about."""
    size = factors.b.abs()
    dominance = (size.max() / size.median()).item() if size.median() > 0 else 1.0
    warning = _BLOW_UP.format(dominance) if dominance > 10 else None
    stats = {
        "explained": factors.explained,
        "dominance": dominance,
        "seconds": seconds,
        "sweeps": len(history),
    }
    meta = {
        "map": map.describe(),
        "method": method.describe(),
        "seed": seed,
        "fit": {
            "status": status.name.lower(),
            "remedy": advice(status, history),
            "history": history,
            "stats": stats,
            "warning": warning,
        },
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
    }
    if factors.V.device.type == "cpu":
        # another number of threads rounds otherwise, and a fit may then end elsewhere
        meta["threads"] = torch.get_num_threads()
    source, target = (map.source, map.target) if isinstance(map, ModelMap) else (0, 1)
    V, U, alpha = (t.cpu() for t in (factors.V, factors.U, factors.alpha))
    features = feature_kind(map)(V, U, alpha, float(method.scale), source, target, meta)
    return Fit(features, status, history, stats, warning)


def feature_kind(map: Map) -> type[FeatureSet]:
    """Class of the features of a map: directions, or adapters."""
    return AdapterSet if isinstance(map, AdapterMap) else FeatureSet


def fit_seeds(map: Map, method: Method, seeds: int, seed: int = 0, progress: bool = True) -> Fit:
    """Fit with several seeds, and measure how well the other fits find each feature of the first.

    For a feature v the measure is the mean over the other fits of max ⟨v, v'⟩ over their features
    v', or of |⟨v, v'⟩| where the method leaves signs arbitrary (`Method.signed`). It rises with the
    number of features to match, for unrelated directions about as √(2 ln m / d), and so it has a
    meaning only beside the baseline, the same for random directions. The baseline takes no account
    of a subspace that all fits share: features that are arbitrary within one exceed it too. A
    method that draws nothing at random gives 1.

    Ctrl-C during the first fit acts as in `fit`, and no other fit follows. During a later one it
    keeps the finished fits: stability is over these, and left out if only the first is there.

    Args:
        map: Δ: a `CausalMap`, an `AdapterMap` or a `FunctionMap`.
        method: See `fit`.
        seeds: Number of fits; with 1 this is `fit`.
        seed: Random seed of the first fit; the others have seed + 1, seed + 2, …
        progress: Whether to draw bars.

    Returns:
        The fit with ``seed``. Its features' ``meta["stability"]``, JSON-able, holds ``seeds``
        (finished fits), ``cosine`` (the measure of each feature), ``mean`` (of these),
        ``baseline``, ``signed``, and ``explained`` (of each fit, squared units of Δ).

    Raises:
        MelboError: Fewer than one seed is asked for, or `fit` refuses the rest.
        KeyboardInterrupt: Ctrl-C was pressed before the first sweep was finished.
    """
    if seeds < 1:
        raise MelboError(
            f"got seeds={seeds}: expected at least 1; it takes 2 to see what is found again"
        )
    # all fits are at one scale
    method, calibration = _calibrated(map, method, seed, progress)
    fits: list[Fit] = []
    try:
        with track(seeds, "seeds", progress and seeds > 1) as bar:
            for i in range(seeds):
                fits.append(_fit(map, method, seed + i, None, progress))
                bar.update()
                if fits[-1].status is Status.INTERRUPTED:
                    break
    except KeyboardInterrupt:
        # pressed before the first sweep of a fit was finished
        if not fits:
            raise
    whole = [done for done in fits if done.status is not Status.INTERRUPTED]
    first = _with_calibration(fits[0], calibration)
    if len(whole) < 2:
        return first
    features = first.features.with_meta(stability=_stability(whole, method.signed))
    return replace(first, features=features)


def _stability(fits: list[Fit], signed: bool) -> Mapping[str, Any]:
    """Measure of how well other fits find each feature of the first, JSON-able."""
    found = stability([done.features.canonical for done in fits], signed)
    return {
        "seeds": len(fits),
        "cosine": found.cosine.tolist(),
        "mean": found.cosine.mean().item(),
        "baseline": found.baseline,
        "signed": signed,
        "explained": [done.stats["explained"] for done in fits],
    }


def _iterative(
    map: Map,
    method: Iterative,
    generator: torch.Generator,
    callback: Callable[[int, Record], None] | None,
    progress: bool,
) -> tuple[Factors, Status, list[Record]]:
    """Factors of the last finished sweep, computed afresh where possible.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed before the first sweep was finished.
    """
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
    if not _finite(factors) and last is not None:
        # the last step led to where Δ is not finite
        return last, Status.NON_FINITE, run.history
    return factors, status, run.history


def _finite(factors: Factors) -> bool:
    return all(bool(torch.isfinite(part).all()) for part in (factors.V, factors.U, factors.alpha))
