"""Geometry of a set of directions beside that of random ones, as one account."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from melbo.dictionary.geometry import (
    Hubs,
    neighbour_cosines,
    neighbour_hubs,
    orthogonality_penalty,
)
from melbo.dictionary.superposition import welch_floor
from melbo.maths.linalg import random_rows, unit

#: Directions whose neighbours are sought among all; more say little more.
ROWS = 2048


@dataclass(frozen=True)
class Neighbours:
    """Neighbours, hubs and overlaps of directions ``[m, d]``, and of random ones of the same shape.

    Attributes:
        k: Places of the neighbours that are looked at, 1 for the nearest.
        cosines: k-th largest cosine of some of the directions ``[n, number of k]``.
        random: The same for random directions ``[n, number of k]``.
        hubs: Directions that are the nearest neighbour of many.
        random_hubs: The same for random directions.
        penalty: Mean of the squared cosines of pairs.
        floor: The smallest that it can be.
    """

    k: tuple[int, ...]
    cosines: Tensor
    random: Tensor
    hubs: Hubs
    random_hubs: Hubs
    penalty: float
    floor: float

    @classmethod
    def of(cls, W: Tensor, seed: int = 0, threshold: float = 0.3) -> "Neighbours":
        """Measure directions, whatever their norms.

        Args:
            W: Directions ``[m, d]``, two or more.
            seed: Random seed of the random directions, and of those that are looked at.
            threshold: Smallest cosine that counts for hubs.
        """
        m, d = W.shape
        generator = torch.Generator().manual_seed(seed)
        k = tuple(each for each in (1, 10, 100) if each < m)
        chance = random_rows(m, d, generator, like=W)
        rows = torch.randperm(m, generator=generator)[:ROWS]
        return cls(
            k,
            neighbour_cosines(W, k, rows=rows),
            neighbour_cosines(chance, k, rows=rows),
            neighbour_hubs(W, threshold),
            neighbour_hubs(chance, threshold),
            orthogonality_penalty(unit(W.detach().double())).item(),
            welch_floor(m, d),
        )

    def describe(self) -> dict[str, Any]:
        """Means of the cosines, hubs, penalty and floor, JSON-able."""
        pairs = {"directions": self.cosines, "random": self.random}
        return {
            "cosines": {
                name: {str(k): found[:, i].mean().item() for i, k in enumerate(self.k)}
                for name, found in pairs.items()
            },
            "hubs": {"directions": self.hubs.describe(), "random": self.random_hubs.describe()},
            "penalty": self.penalty,
            "floor": self.floor,
        }
