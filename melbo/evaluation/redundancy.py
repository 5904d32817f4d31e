"""What a cluster of features explains that its mean does not (docs/method.md §5)."""

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
    """What a cluster of features explains that one feature in its place does not: bᵀK⁻¹b in squared units of Δ (METHOD §2, §5).

    ``explained − without`` is what only the cluster accounts for, ``explained − merged`` what of that is lost by merging it; less than nothing
    where the mean of the cluster is nearer the truth than its members.

    Attributes:
        features: Which features the cluster is made of.
        explained: By all features.
        merged: With the cluster's mean direction in its place.
        without: With the cluster left out.
    """

    features: tuple[int, ...]
    explained: float
    merged: float
    without: float

    def describe(self) -> dict[str, tuple[int, ...] | float]:
        """All of it, JSON-able."""
        return asdict(self)


def redundancy(map: Map, V: Tensor, scale: float, groups: Sequence[Tensor]) -> list[Redundancy]:
    """What the exponential transcoder explains when each cluster of features in turn is replaced by its mean, and when it is left out.

    A cluster's mean is one feature, v̄ its `mean_direction`. For features and means alike u = normalise(Δ_R(v)) and b = ⟨u, Δ_R(v)⟩ = ‖Δ_R(v)‖,
    as `melbo.Exponential` ends; all responses come from one call of ``map.value``.

    Args:
        map: Δ, of ``d`` dimensions.
        V: Directions of the features ``[m, d]``, whatever their norms.
        scale: R, the norm of a perturbation.
        groups: Indices of the features of each cluster, from `clusters`; those of one feature are passed over.

    Returns:
        One for each cluster of two or more, in their order.

    Raises:
        MelboError: Features that are not there, directions of another width than the map's, a response that is not finite.
    """
    V = unit_rows(V)
    groups = [rows for rows in groups if len(rows) > 1]
    if any(not ((rows >= 0) & (rows < len(V))).all() for rows in groups):
        raise MelboError(
            f"got clusters with indices outside 0 to {len(V) - 1}: give those of the same {len(V)} features"
        )
    every = torch.arange(len(V))
    V = torch.cat([V, *(mean_direction(V[rows])[None] for rows in groups)])
    D = map.value(scale * V).cpu().double()
    if not torch.isfinite(D).all():
        raise MelboError(
            f"a response is not finite at scale {scale:g}: lower the scale, or load the model in float32 or bfloat16"
        )

    def explained(rows: Tensor) -> float:
        return exponential_factors(V[rows], D[rows]).explained

    found, whole = [], explained(every)
    for mean, rows in enumerate(groups, len(every)):
        rest = every[~torch.isin(every, rows)]
        merged = torch.cat([rest, torch.tensor([mean])])
        found.append(Redundancy(tuple(rows.tolist()), whole, explained(merged), explained(rest)))
    return found
