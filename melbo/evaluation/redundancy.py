"""Redundancy of clusters of features in the transcoder (docs/method.md §5)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from melbo.errors import MelboError
from melbo.maps.base import Map
from melbo.maths.geometry import mean_direction, unit_rows
from melbo.maths.transcoder import exponential_factors


@dataclass(frozen=True)
class Redundancy:
    """Explained amounts 2αᵀb − αᵀKα with and without a cluster, in squared units of Δ.

    ``explained − without`` is accounted for by the cluster alone. ``explained − averaged`` is lost
    when the cluster's mean takes its place; it is negative where the mean is nearer the truth than
    the members (docs/method.md §2, §5).

    Attributes:
        features: Indices of the features in the cluster.
        explained: Amount explained by all features.
        averaged: Amount with the cluster's mean direction in its place.
        without: Amount with the cluster left out.
    """

    features: tuple[int, ...]
    explained: float
    averaged: float
    without: float

    def describe(self) -> dict[str, tuple[int, ...] | float]:
        """All of it, JSON-able."""
        return asdict(self)


def redundancy(map: Map, V: Tensor, scale: float, groups: Sequence[Tensor]) -> list[Redundancy]:
    """Explained amounts when each cluster of features is replaced by its mean, and left out.

    A cluster's mean is one feature, v̄ its `mean_direction`. Features and means alike have
    u = normalise(Δ_R(v)) and b = ⟨u, Δ_R(v)⟩ = ‖Δ_R(v)‖, as at the end of `melbo.Exponential`. All
    responses come from one call of ``map.value``.

    Args:
        map: Δ of ``d`` dimensions.
        V: Directions of the features ``[m, d]``, whatever their norms.
        scale: R, norm of a perturbation.
        groups: Indices of the features of each cluster (see `melbo.maths.geometry.clusters`);
            clusters of one feature are passed over.

    Returns:
        One for each cluster of two or more, in their order.

    Raises:
        MelboError: A cluster names a feature that is not there, or a response is not finite; and as
            ``map.value``.
    """
    V = unit_rows(V)
    groups = [rows for rows in groups if len(rows) > 1]
    if any(not ((rows >= 0) & (rows < len(V))).all() for rows in groups):
        raise MelboError(
            f"got clusters with indices outside 0 to {len(V) - 1}: "
            f"give those of the same {len(V)} features"
        )
    every = torch.arange(len(V))
    V = torch.cat([V, *(mean_direction(V[rows])[None] for rows in groups)])
    D = map.value(scale * V).cpu().double()
    if not torch.isfinite(D).all():
        raise MelboError(
            f"a response is not finite at scale {scale:g}: "
            "lower the scale, or load the model in float32 or bfloat16"
        )

    def explained(rows: Tensor) -> float:
        return exponential_factors(V[rows], D[rows]).explained

    results, whole = [], explained(every)
    for mean, rows in enumerate(groups, len(every)):
        rest = every[~torch.isin(every, rows)]
        averaged = torch.cat([rest, torch.tensor([mean])])
        results.append(
            Redundancy(tuple(rows.tolist()), whole, explained(averaged), explained(rest))
        )
    return results
