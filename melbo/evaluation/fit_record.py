"""Parts of a run's account of its fit that are drawn or counted with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

_Json = dict[str, Any]


@dataclass(frozen=True)
class FitRecord:
    """Record of a fit: its curves, and what was found again by other seeds.

    Attributes:
        calibration: Result of `melbo.calibrate`, if there is one.
        history: Sweeps of the fit.
        explained: Explained amount of the features that were kept.
        stability: Result of `melbo.fit_seeds`, where it is of these very features and not of a set
            that they are taken from.
    """

    calibration: _Json | None
    history: list[_Json]
    explained: float | None
    stability: _Json | None

    @classmethod
    def of(cls, meta: Mapping[str, Any], num: int) -> Self:
        """Read the ``meta`` of a set of ``num`` features."""
        fit, stability = meta.get("fit", {}), meta.get("stability")
        return cls(
            calibration=meta.get("calibration"),
            history=fit.get("history") or [],
            explained=fit.get("stats", {}).get("explained"),
            stability=stability if stability and len(stability["cosine"]) == num else None,
        )
