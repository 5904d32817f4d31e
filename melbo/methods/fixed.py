"""Directions that are not searched for: given or random ones."""

from dataclasses import dataclass, field
from typing import Any

import torch

from melbo.errors import MelboError
from melbo.maps.base import Map
from melbo.maths.linalg import random_rows, unit
from melbo.maths.transcoder import Factors, exponential_factors
from melbo.methods.base import Direct


@dataclass(frozen=True)
class Given(Direct):
    """Given directions, U = normalise(Δ_R(V)).

    Attributes:
        num_factors: Number of rows.
        scale: R.
        rows: The directions, of any norm, ``d_source`` numbers each.
    """

    rows: tuple[tuple[float, ...], ...] = field(default=(), repr=False)

    def check(self, map: Map) -> None:
        """Refuse rows that do not fit this map (see `Method.check`).

        Raises:
            MelboError: The number of rows or their width is wrong, or a row is zero.
        """
        super().check(map)
        fitting = [len(row) == map.d_source and any(row) for row in self.rows]
        if len(self.rows) != self.num_factors or not all(fitting):
            raise MelboError(
                f"got {len(self.rows)} rows, expected {self.num_factors} of {map.d_source} "
                "numbers, none of them all zero"
            )

    def describe(self) -> dict[str, Any]:
        """Name and settings without the rows, which the features hold."""
        return {k: v for k, v in super().describe().items() if k != "rows"}

    def solve(self, map: Map, generator: torch.Generator) -> Factors:
        """The given directions and what they do."""
        V = unit(torch.tensor(self.rows, dtype=torch.float64)).to(map.device, map.dtype)
        return exponential_factors(V, map.value(self.scale * V))


@dataclass(frozen=True)
class Random(Direct):
    """The control: directions drawn uniformly from the sphere, U = normalise(Δ_R(V))."""

    def solve(self, map: Map, generator: torch.Generator) -> Factors:
        """Random directions and what they do."""
        V = random_rows(self.num_factors, map.d_source, generator).to(map.device, map.dtype)
        return exponential_factors(V, map.value(self.scale * V))
