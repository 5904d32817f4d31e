"""Geometry of many directions: near neighbours, hubs, and the penalty on their overlaps.

Rows of a matrix ``[m, d]`` are directions: a dictionary's ``W_dec``, or V and U of a transcoder.
Matrices of all pairs are computed in blocks of rows, so memory does not grow with m².
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from melbo.errors import MelboError
from melbo.maths.linalg import unit

# entries of a block of cosines: 32 MiB in float32
_BLOCK = 2**23


def neighbour_cosines(
    W: Tensor,
    k: int | Sequence[int] = (1, 10, 100),
    signed: bool = True,
    rows: Tensor | None = None,
) -> Tensor:
    """The k-th largest cosine of each row with the other rows.

    Compare with random directions of the same shape (`melbo.maths.linalg.random_rows`), as the
    largest of many cosines is far from 0 for these too.

    Args:
        W: Directions ``[m, d]``, whatever their norms.
        k: One k, or several, each 1 to m − 1.
        signed: Whether v and −v are different; if not, the k-th largest |cos| is returned.
        rows: Indices of the rows whose neighbours are sought among all; all rows if left out.

    Returns:
        Cosines ``[n]`` for one k, ``[n, number of k]`` for several, where n is the number of rows
        sought.

    Raises:
        MelboError: The rows are not two or more finite directions, a k is not from 1 to m − 1, or
            an index is not that of a row.
    """
    W = _directions(W)
    several = [k] if isinstance(k, int) else list(k)
    wrong = [one for one in several if not 1 <= one < len(W)]
    if wrong or not several:
        raise MelboError(
            f"k is {wrong[0] if wrong else 'empty'}: "
            f"expected 1 to {len(W) - 1}, as each of {len(W)} rows has that many neighbours"
        )
    wanted = torch.arange(len(W)) if rows is None else rows
    if wanted.dtype != torch.long or not ((wanted >= 0) & (wanted < len(W))).all():
        raise MelboError(f"rows hold something else than indices: expected 0 to {len(W) - 1}")
    picked = torch.tensor(several, device=W.device) - 1
    found = [
        (block if signed else block.abs()).topk(max(several), dim=1).values[:, picked]
        for _, block in _blocks(W, wanted, own=-torch.inf if signed else 0.0)
    ]
    cosines = torch.cat(found)
    return cosines[:, 0] if isinstance(k, int) else cosines


@dataclass(frozen=True)
class Hubs:
    """Nearest neighbours of a set of directions, and how many directions share one.

    Attributes:
        nearest: Index of the nearest neighbour of each direction ``[m]``.
        cosine: Cosine with it ``[m]``.
        shared: How many directions have this one as their nearest neighbour at the threshold or
            above ``[m]``.
        threshold: Smallest cosine that counts.
    """

    nearest: Tensor
    cosine: Tensor
    shared: Tensor
    threshold: float

    def describe(self) -> dict[str, float]:
        """Share of directions with a near neighbour, and of these with the most common one."""
        near = int(self.shared.sum())
        return {
            "threshold": self.threshold,
            "near": near / len(self.shared),
            "neighbours": int((self.shared > 0).sum()),
            "largest_hub": int(self.shared.max()),
            "largest_hub_share": int(self.shared.max()) / near if near else 0.0,
        }


def neighbour_hubs(W: Tensor, threshold: float = 0.3) -> Hubs:
    """Nearest neighbour of each row, and rows that are the neighbour of many (hubs).

    Args:
        W: Directions ``[m, d]``, whatever their norms.
        threshold: Smallest cosine that counts, between −1 and 1.

    Raises:
        MelboError: The rows are not two or more finite directions, or the threshold is no cosine.
    """
    W = _directions(W)
    if not -1 <= threshold <= 1:
        raise MelboError(f"the threshold is {threshold}: expected a cosine, −1 to 1")
    best = [b.max(1) for _, b in _blocks(W, torch.arange(len(W)), own=-torch.inf)]
    nearest = torch.cat([each.indices for each in best])
    cosine = torch.cat([each.values for each in best])
    shared = nearest[cosine >= threshold].bincount(minlength=len(W))
    return Hubs(nearest, cosine, shared, threshold)


def orthogonality_penalty(W: Tensor) -> Tensor:
    """Mean of ⟨w_i, w_j⟩² over pairs i ≠ j, a scalar with a gradient.

    No set of m unit rows is below `melbo.dictionary.welch_floor`. Because ‖WWᵀ‖ = ‖WᵀW‖, the
    smaller of the two products does: m·d·min(m, d) multiplications and min(m, d)² numbers, whatever
    the batch.

    Args:
        W: Rows ``[m, d]``, of norm 1 if the penalty is to be on angles alone.

    Raises:
        MelboError: The rows are not two or more finite directions.
    """
    require_directions(W)
    m, d = W.shape
    if m <= d:
        # without the diagonal, so that nothing is left of orthonormal rows
        G = W @ W.T
        overlaps = G.square().sum() - G.diagonal().square().sum()
    else:
        overlaps = (W.T @ W).square().sum() - W.square().sum(1).square().sum()
    return overlaps / (m * (m - 1))


def _directions(W: Tensor) -> Tensor:
    """Unit rows, detached, in float32 or float64 where they are ``[m, d]``.

    Raises:
        MelboError: They are not two or more finite directions.
    """
    require_directions(W)
    W = W.detach()
    return unit(W if W.dtype == torch.float64 else W.float())


def require_directions(W: Tensor) -> None:
    """Refuse rows that are not two or more finite directions.

    Raises:
        MelboError: They are not.
    """
    if W.ndim != 2 or len(W) < 2:
        raise MelboError(
            f"got directions of shape {list(W.shape)}: expected two rows or more, [m, d]"
        )
    norms = W.detach().norm(dim=1)
    bad = (~torch.isfinite(norms) | (norms == 0)).nonzero()[:, 0]
    if len(bad):
        kind = "zero" if norms[bad[0]] == 0 else "not finite"
        raise MelboError(
            f"row {int(bad[0])} of {len(W)} directions is {kind}: leave such rows out ({len(bad)})"
        )


def _blocks(W: Tensor, rows: Tensor, own: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Cosines of rows with all rows, block by block, with their indices.

    Args:
        W: Unit rows ``[m, d]``.
        rows: Indices of the rows ``[n]``.
        own: Value in place of a row's cosine with itself.
    """
    for index in torch.split(rows.to(W.device), max(1, _BLOCK // len(W))):
        block = W[index] @ W.T
        block.scatter_(1, index[:, None], own)
        yield index, block
