"""Directions of a run among those of a dictionary, beside nulls that keep what chance explains."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from melbo.errors import MelboError
from melbo.maths.geometry import match
from melbo.maths.linalg import orthogonalise, unit

#: Draws of a null with which p can be .05.
FEWEST = 19


@dataclass(frozen=True)
class Matches:
    """The most similar row of a dictionary for each direction, by |cos|.

    Attributes:
        latent: Index of the row ``[n]``.
        cosine: Its |cos| ``[n]``.
        nulls: Largest |cos| with the rows of each null, by its name ``[draws, n]``.
    """

    latent: Tensor
    cosine: Tensor
    nulls: dict[str, Tensor]

    def describe(self) -> dict[str, Any]:
        """Means, the share of directions with p ≤ .05 against a null, and every match, JSON-able.

        p = (1 + draws that reach the |cos|) / (1 + draws), so that chance gives a share of 5 % at
        most.
        """
        return {
            "mean": self.cosine.mean().item(),
            "largest": self.cosine.max().item(),
            "nulls": {
                name: {
                    "mean": found.mean().item(),
                    "above": (_p(self.cosine, found) <= 0.05).double().mean().item(),
                }
                for name, found in self.nulls.items()
            },
            "latent": self.latent.tolist(),
            "cosine": self.cosine.tolist(),
        }


def best_matches(rows: Tensor, W: Tensor, draws: int = FEWEST, seed: int = 0) -> Matches:
    """Match directions with the rows of a dictionary, and with those of nulls.

    Two nulls take the place of the dictionary. ``covariance`` has as many Gaussian rows with the
    mean and the covariance of the dictionary's own: rows that lie where the dictionary's lie, but
    are no latents. ``rotated`` is the dictionary turned at random: latents as close to each other
    as they are, but elsewhere.

    Args:
        rows: Directions ``[n, d]``, of V or U of a run.
        W: Decoder directions ``[m, d]``, whatever their norms.
        draws: Number of draws of each null.
        seed: Random seed of the nulls.

    Raises:
        MelboError: The widths differ, or there are too few draws for p ≤ .05.
    """
    if draws < FEWEST:
        raise MelboError(
            f"got {draws} draws of a null: expected {FEWEST} or more, as p ≤ .05 takes that many"
        )
    found = match(rows, W, signed=False)
    generator = torch.Generator().manual_seed(seed)
    W = unit(W.detach().double().cpu())
    m, d = W.shape
    mean = W.mean(0)
    values, vectors = torch.linalg.eigh((W - mean).T @ (W - mean) / m)
    spread = vectors * values.clamp_min(0).sqrt()

    def noise(rows: int) -> Tensor:
        return torch.randn(rows, d, generator=generator, dtype=torch.float64)

    nulls: dict[str, list[Tensor]] = {"covariance": [], "rotated": []}
    for _ in range(draws):
        for name, others in (
            ("covariance", mean + noise(m) @ spread.T),
            ("rotated", W @ orthogonalise(noise(d), "qr")),
        ):
            nulls[name].append(match(rows, others, signed=False).cosine)
    return Matches(
        found.index, found.cosine, {name: torch.stack(each) for name, each in nulls.items()}
    )


def _p(cosine: Tensor, null: Tensor) -> Tensor:
    """Share of draws, the directions' own among them, that reach each |cos| ``[n]``."""
    return (1 + (null >= cosine).sum(0)) / (1 + len(null))
