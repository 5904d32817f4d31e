"""Sets of directions as sets: how many there really are, how alike they are, what one can stand for, what another fit finds again (METHOD §5)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor

from melbo.errors import MelboError
from melbo.maths.linalg import random_rows, unit


@dataclass(frozen=True)
class Spread:
    """How a set of directions ``[m, d]`` is spread.

    Attributes:
        condition_number: Largest over smallest singular value of the rows: 1 if orthonormal, infinite if they depend on each other.
        effective: (Σσ²)² / Σσ⁴, how many directions there are when those that point the same way count once: m if orthonormal.
        mean: Of |cos| over pairs; 0 for a single direction.
        deviation: Its standard deviation.
        largest: The largest.
        random_mean: The mean for as many random directions, √(2 / (πd)).
    """

    condition_number: float
    effective: float
    mean: float
    deviation: float
    largest: float
    random_mean: float

    def describe(self) -> dict[str, float]:
        """All of it, JSON-able."""
        return asdict(self)


def spread(V: Tensor) -> Spread:
    """The spread of the rows of ``V`` ``[m, d]``, whatever their norms."""
    V = unit_rows(V)
    sigma = torch.linalg.svdvals(V)
    smallest = sigma[-1] if len(V) <= V.shape[1] else sigma.new_zeros(())
    cosines = _pairs(V).abs()
    one = len(cosines) == 0
    energy = sigma.square()
    return Spread(
        condition_number=(sigma[0] / smallest).item()
        if smallest > 1e-12 * sigma[0]
        else float("inf"),
        effective=(energy.sum().square() / energy.square().sum()).item(),
        mean=0.0 if one else cosines.mean().item(),
        deviation=0.0 if len(cosines) < 2 else cosines.std().item(),
        largest=0.0 if one else cosines.max().item(),
        random_mean=(2 / (torch.pi * V.shape[1])) ** 0.5,
    )


def energy_share(V: Tensor, activations: Tensor) -> Tensor:
    """Share of the energy of activations ``[n, d]`` that lies along each row of ``V``, ``[m]``; 1/d for a direction they do not favour.

    Activations are taken as they are, their mean included.
    """
    x = activations.double()
    return (x @ unit_rows(V).T).square().sum(0) / x.square().sum()


@dataclass(frozen=True)
class Match:
    """For each direction of one set, the most alike in another.

    Attributes:
        cosine: Its cosine ``[m]`` (its size, where signs mean nothing).
        index: Which one it is ``[m]``.
        baseline: Mean of the same for random directions against the other set.
    """

    cosine: Tensor
    index: Tensor
    baseline: float

    def describe(self) -> dict[str, float]:
        """Mean cosine, share above .9, and the baseline, JSON-able."""
        return {
            "mean": self.cosine.mean().item(),
            "above_0.9": (self.cosine > 0.9).double().mean().item(),
            "baseline": self.baseline,
        }


def match(V: Tensor, others: Tensor, signed: bool = True, seed: int = 0) -> Match:
    """The most alike of ``others`` ``[m', d]`` for each row of ``V`` ``[m, d]``.

    Args:
        V: Directions, of another seed, prompt or layer than the others.
        others: Where to look.
        signed: Whether v and −v are different.
        seed: Of the 256 random directions that the baseline is measured with.

    Raises:
        MelboError: Sets of different widths.
    """
    if V.shape[-1] != others.shape[-1]:
        raise MelboError(
            f"got directions of widths {V.shape[-1]} and {others.shape[-1]}: only sets of one width can be compared"
        )
    cosine, index = _best(unit_rows(V), unit_rows(others), signed)
    chance, _ = _best(
        random_rows(256, V.shape[-1], torch.Generator().manual_seed(seed)).double(),
        unit_rows(others),
        signed,
    )
    return Match(cosine, index, chance.mean().item())


@dataclass(frozen=True)
class Stability:
    """How well directions are found again.

    Attributes:
        cosine: Of each direction of the first set, the mean over the other sets of its best cosine there ``[m]``.
        baseline: The same for random directions, mean.
    """

    cosine: Tensor
    baseline: float


def stability(sets: Sequence[Tensor], signed: bool = True) -> Stability:
    """How well the directions of the first set are found again in the others.

    Raises:
        MelboError: Fewer than two sets.
    """
    if len(sets) < 2:
        raise MelboError(
            f"got {len(sets)} set of directions: expected two or more, of different seeds"
        )
    matches = [match(sets[0], other, signed) for other in sets[1:]]
    return Stability(
        torch.stack([m.cosine for m in matches]).mean(0),
        sum(m.baseline for m in matches) / len(matches),
    )


def mean_direction(V: Tensor) -> Tensor:
    """Mean of the rows, normalised: what they have in common, signs kept. ``[d]``."""
    return unit(unit_rows(V).mean(0, keepdim=True))[0].to(V)


def main_direction(V: Tensor) -> Tensor:
    """Leading right singular vector of the rows, which asks for no signs; its own sign is that of the mean. ``[d]``."""
    v = torch.linalg.svd(unit_rows(V), full_matrices=False)[2][0]
    return (v if v @ unit_rows(V).mean(0) >= 0 else -v).to(V)


def clusters(V: Tensor, threshold: float = 0.5) -> list[Tensor]:
    """Which rows of ``V`` ``[m, d]`` point the same way; v and −v do not.

    Average linkage (UPGMA; Sokal & Michener 1958) on 1 − cosine: the two clusters between which the mean cosine is largest become one, as long as
    it is ``threshold`` or more.

    Args:
        V: Directions, whatever their norms.
        threshold: More than 0, less than 1.

    Returns:
        Indices of the rows of each cluster, ascending; each row in one cluster, alone perhaps; the largest cluster first, then by first index.

    Raises:
        MelboError: A threshold that is not between 0 and 1.
    """
    if not 0 < threshold < 1:
        raise MelboError(
            f"threshold is {threshold}: expected a cosine between 0 and 1, both left out"
        )
    V = unit_rows(V)
    if len(V) == 1:
        return [torch.tensor([0])]
    tree = linkage((1 - _pairs(V)).clamp_min(0).numpy(), "average")
    label = torch.from_numpy(fcluster(tree, 1 - threshold, "distance"))
    found = [(label == one).nonzero()[:, 0] for one in label.unique()]
    return sorted(found, key=lambda rows: (-len(rows), rows[0].item()))


def _pairs(V: Tensor) -> Tensor:
    """Cosines of all pairs of unit rows, (0, 1), (0, 2) … as scipy orders them."""
    return (V @ V.T)[tuple(torch.triu_indices(len(V), len(V), offset=1))]


def _best(V: Tensor, others: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    cosines = V @ others.T
    best = (cosines if signed else cosines.abs()).max(1)
    return best.values, best.indices


def unit_rows(V: Tensor) -> Tensor:
    return unit(torch.atleast_2d(V).detach().cpu().double())
