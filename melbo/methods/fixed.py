"""Directions that come from elsewhere, taken through the same as those that are found."""

from dataclasses import dataclass, field

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
        num_factors: How many there are.
        scale: R.
        rows: The directions, of any norm, ``d_source`` numbers each.
    """

    rows: tuple[tuple[float, ...], ...] = field(default=(), repr=False)

    def check(self, map: Map) -> None:
        """See `Method.check`; also the rows' number and widths, and that none is zero."""
        super().check(map)
        if len(self.rows) != self.num_factors or any(
            len(row) != map.d_source or not any(row) for row in self.rows
        ):
            raise MelboError(
                f"got {len(self.rows)} rows, expected {self.num_factors} of {map.d_source} numbers, none of them all zero"
            )

    def describe(self) -> dict:
        """The name and the settings; the rows are the features themselves."""
        return {"name": type(self).__name__, "num_factors": self.num_factors, "scale": self.scale}

    def solve(self, map: Map, generator: torch.Generator) -> Factors:
        """What they do."""
        V = unit(torch.tensor(self.rows, dtype=torch.float64)).to(map.device, map.dtype)
        D = map.value(self.scale * V)
        return exponential_factors(V, D)


@dataclass(frozen=True)
class Random(Direct):
    """The control: directions drawn uniformly from the sphere, U = normalise(Δ_R(V))."""

    def solve(self, map: Map, generator: torch.Generator) -> Factors:
        """Random directions and what they do."""
        V = random_rows(self.num_factors, map.d_source, generator).to(map.device, map.dtype)
        D = map.value(self.scale * V)
        return exponential_factors(V, D)
