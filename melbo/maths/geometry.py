"""Sets of directions: how spread out they are, how alike two sets are, and clusters in one.

See docs/method.md §5, under multiplicity.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor

from melbo.errors import MelboError
from melbo.maths.linalg import random_rows, unit


@dataclass(frozen=True)
class Spread:
    """Spread of a set of directions ``[m, d]``.

    Attributes:
        condition_number: Largest over smallest singular value of the rows: 1 if they are
            orthonormal, infinite if they are linearly dependent.
        effective: (Σσ²)² / Σσ⁴, the number of directions when directions that point the same way
            count once: m if they are orthonormal.
        mean: Mean of |cos| over pairs; 0 for a single direction.
        deviation: Standard deviation of |cos| over pairs.
        largest: Largest |cos| of a pair.
        random_mean: Mean of |cos| over pairs of random directions, √(2 / (πd)).
    """

    condition_number: float
    effective: float
    mean: float
    deviation: float
    largest: float
    random_mean: float

    def describe(self) -> dict[str, float]:
        """All attributes, JSON-able."""
        return asdict(self)


def spread(V: Tensor) -> Spread:
    """Spread of the rows of ``V`` ``[m, d]``, whatever their norms."""
    V = unit_rows(V)
    sigma = torch.linalg.svdvals(V)
    smallest = sigma[-1] if len(V) <= V.shape[1] else sigma.new_zeros(())
    dependent = not smallest > 1e-12 * sigma[0]
    cosines = _pairs(V).abs()
    one = len(cosines) == 0
    energy = sigma.square()
    return Spread(
        condition_number=float("inf") if dependent else (sigma[0] / smallest).item(),
        effective=(energy.sum().square() / energy.square().sum()).item(),
        mean=0.0 if one else cosines.mean().item(),
        deviation=0.0 if len(cosines) < 2 else cosines.std().item(),
        largest=0.0 if one else cosines.max().item(),
        random_mean=(2 / (torch.pi * V.shape[1])) ** 0.5,
    )


def energy_share(V: Tensor, activations: Tensor) -> Tensor:
    """Share of the energy of activations that lies along each direction, ``[m]``.

    It is 1/d for a direction that the activations do not favour. Their mean is not taken off.

    Args:
        V: Directions ``[m, d]``, whatever their norms.
        activations: Activations ``[n, d]``.
    """
    x = activations.double()
    return (x @ unit_rows(V).T).square().sum(0) / x.square().sum()


@dataclass(frozen=True)
class Match:
    """For each direction of one set, the most similar direction of another.

    Attributes:
        cosine: Cosine with it ``[m]`` (|cos| where signs mean nothing).
        index: Its index in the other set ``[m]``.
        baseline: Mean best cosine of random directions with the other set.
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
    """The most similar row of ``others`` for each row of ``V``.

    Args:
        V: Directions ``[m, d]``.
        others: Directions ``[m', d]`` to search, of another seed, prompt or layer.
        signed: Whether v and −v are different.
        seed: Random seed of the 256 directions that measure the baseline.

    Raises:
        MelboError: The sets have different widths.
    """
    width = V.shape[-1]
    if width != others.shape[-1]:
        raise MelboError(
            f"got directions of widths {width} and {others.shape[-1]}: "
            "only sets of one width can be compared"
        )
    others = unit_rows(others)
    cosine, index = _best(unit_rows(V), others, signed)
    draws = random_rows(256, width, torch.Generator().manual_seed(seed)).double()
    chance, _ = _best(draws, others, signed)
    return Match(cosine, index, chance.mean().item())


@dataclass(frozen=True)
class Stability:
    """Stability of a set of directions over several fits.

    Attributes:
        cosine: For each direction of the first set, its best cosine in another set, averaged over
            the other sets ``[m]``.
        baseline: The same for random directions, averaged over them too.
    """

    cosine: Tensor
    baseline: float


def stability(sets: Sequence[Tensor], signed: bool = True) -> Stability:
    """Stability of the first set: how well the others contain its directions.

    Args:
        sets: Directions ``[m, d]`` of each fit.
        signed: Whether v and −v are different.

    Raises:
        MelboError: There are fewer than two sets.
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
    """Normalised mean of the rows of ``V`` ``[m, d]``, signs kept, ``[d]``."""
    return unit(unit_rows(V).mean(0, keepdim=True))[0].to(V)


def main_direction(V: Tensor) -> Tensor:
    """Leading right singular vector of the rows of ``V`` ``[m, d]``, ``[d]``.

    It does not depend on the signs of the rows. Its own sign is that of their mean.
    """
    rows = unit_rows(V)
    v: Tensor = torch.linalg.svd(rows, full_matrices=False)[2][0]
    return (v if v @ rows.mean(0) >= 0 else -v).to(V)


def clusters(V: Tensor, threshold: float = 0.5) -> list[Tensor]:
    """Clusters of rows that point the same way; v and −v do not.

    Average linkage (UPGMA; Sokal & Michener 1958) on 1 − cosine: the two clusters with the largest
    mean cosine between them become one, as long as it is ``threshold`` or more.

    Args:
        V: Directions ``[m, d]``, whatever their norms.
        threshold: Smallest mean cosine between two clusters that are joined, more than 0 and less
            than 1.

    Returns:
        Indices of the rows of each cluster, ascending. Each row is in one cluster, alone perhaps.
        The largest cluster comes first; clusters of one size are in order of their first row.

    Raises:
        MelboError: The threshold is not between 0 and 1.
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
    groups = [(label == one).nonzero()[:, 0] for one in sorted(set(label.tolist()))]
    return sorted(groups, key=lambda rows: (-len(rows), rows[0].item()))


def unit_rows(V: Tensor) -> Tensor:
    """Rows of norm 1 on the CPU in float64, detached ``[m, d]``; a single direction is one row."""
    return unit(V.reshape(-1, V.shape[-1]).detach().cpu().double())


def _pairs(V: Tensor) -> Tensor:
    """Cosines of all pairs of unit rows, (0, 1), (0, 2) … as scipy orders them."""
    return (V @ V.T)[tuple(torch.triu_indices(len(V), len(V), offset=1))]


def _best(V: Tensor, others: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """Largest cosine with the unit rows of ``others``, and the index of the row that has it."""
    cosines = V @ others.T
    best = (cosines if signed else cosines.abs()).max(1)
    return best.values, best.indices
