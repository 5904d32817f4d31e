"""Orders by α² with strengths of either sign, and with none below zero: six planted factors.

``python -m research.speed.strengths`` takes seconds, prints the table of docs/method.md §5 and
writes ``research/results/speed/strengths.json``. Δ = U·expm1(Vᵀθ) has 128 dimensions and six
factors; 64 are sought in 30 sweeps. Both kinds of strength are fitted to the same directions.
"""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from melbo import Exponential, FunctionMap, fit
from melbo.evaluation.tables import markdown
from melbo.maths.linalg import Orthogonalise, random_rows
from melbo.maths.transcoder import Factors, exponential_factors
from melbo.records import environment
from research.speed.results import save

_PLANTED, _WIDTH, _SOUGHT, _SWEEPS = 6, 128, 64, 30
_SCALES, _SEEDS = (1.0, 4.0), range(6)

Row = dict[str, Any]


def first(truth: Tensor, factors: Factors) -> int:
    """Number of true directions among as many factors, the first by α², at a cosine above .99.

    Args:
        truth: True source directions, unit rows.
        factors: Factors.
    """
    order = factors.alpha.square().argsort(descending=True)[: len(truth)]
    return int(((truth @ factors.V[order].T).max(1).values > 0.99).sum())


def measure(orthogonalise: Orthogonalise, scale: float, seed: int) -> Row:
    """Fit once, and fit strengths of both kinds to the directions.

    Args:
        orthogonalise: See `melbo.Exponential`.
        scale: R.
        seed: Random seed of the fit; the planted factors have another.
    """
    draw = torch.Generator().manual_seed(1000 + seed)
    V, U = random_rows(_PLANTED, _WIDTH, draw), random_rows(_PLANTED, _WIDTH, draw)
    toy = FunctionMap(lambda theta: torch.expm1(theta @ V.T) @ U, _WIDTH, _WIDTH)
    method = Exponential(
        _SOUGHT, scale, orthogonalise=orthogonalise, max_steps=_SWEEPS, tol=0.0, nonnegative=False
    )
    found = fit(toy, method, seed=seed, progress=False).features.V
    row: Row = {"found": int(((V @ found.T).max(1).values > 0.99).sum())}
    D = toy.value(scale * found)
    for name, nonnegative in (("free", False), ("nonnegative", True)):
        factors = exponential_factors(found, D, nonnegative)
        row[name] = {
            "first": first(V, factors),
            "not zero": int((factors.alpha != 0).sum()),
            "least": factors.alpha.min().item(),
            "largest": factors.alpha.max().item(),
            "explained": factors.explained,
        }
    return row


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each orthogonaliser and R, least to largest over the seeds.

    Args:
        rows: Rows of the file.
    """
    head = ["", "R", "found at all", "first six, either sign", "α", "first six, α ≥ 0", "not zero"]
    lines = []
    for how, scale in dict.fromkeys((row["orthogonalise"], row["scale"]) for row in rows):
        own = [row for row in rows if (row["orthogonalise"], row["scale"]) == (how, scale)]
        free, kept = ([row[name] for row in own] for name in ("free", "nonnegative"))
        least, largest = min(x["least"] for x in free), max(x["largest"] for x in free)
        cells = (
            _range([row["found"] for row in own]),
            _range([x["first"] for x in free]),
            f"{least:.3g} … {largest:.3g}",
            _range([x["first"] for x in kept]),
            _range([x["not zero"] for x in kept]),
        )
        lines.append([f"`{how}`", f"{scale:g}", *cells])
    return markdown(head, lines)


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def main() -> None:
    """Measure every orthogonaliser and R on every seed."""
    torch.set_num_threads(1)
    rows = [
        {"orthogonalise": how, "scale": scale, "seed": seed, **measure(how, scale, seed)}
        for how in get_args(Orthogonalise)
        for scale in _SCALES
        for seed in _SEEDS
    ]
    save("strengths", {"environment": environment(), "rows": rows})
    print(table(rows))


if __name__ == "__main__":
    main()
