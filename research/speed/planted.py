"""Recovery of planted factors: Δ = U·expm1(Vᵀθ), d = 4096, 32 true factors (docs/method.md §10).

512 factors are sought at R = 1 in ten sweeps. ``python -m research.speed.planted`` prints a table
and writes ``research/results/speed/planted.json``.
"""

from dataclasses import dataclass
from typing import Any

import torch

from melbo import Exponential, FunctionMap, fit
from melbo.maps.base import Map
from melbo.maths.linalg import random_rows
from melbo.methods.iterate import Record
from melbo.records import environment
from research.speed.results import save

SEEDS = range(6)


@dataclass(frozen=True)
class RowOrder(Exponential):
    """QR in row order, as it was before the strongest gradients came first."""

    def step(self, map: Map, state: Any) -> tuple[Any, Record]:
        """Make a sweep that does not know the gains."""
        return super().step(map, state._replace(gain=torch.ones_like(state.gain)))


METHODS = {
    "qr, row order": RowOrder(512, 1.0),
    "qr": Exponential(512, 1.0),
    "polar": Exponential(512, 1.0, orthogonalise="polar"),
    "soft": Exponential(512, 1.0, orthogonalise="soft"),
}


def recovery(method: Exponential, seed: int) -> tuple[float, float]:
    """Mean over true factors of the best cosine among those found, and the share above .99.

    Args:
        method: The method.
        seed: Random seed of the fit; the planted factors have another.
    """
    draw = torch.Generator().manual_seed(1000 + seed)
    V, U = random_rows(32, 4096, draw), random_rows(32, 4096, draw)
    toy = FunctionMap(lambda theta: torch.expm1(theta @ V.T) @ U, 4096, 4096)
    fitted = fit(toy, method, seed=seed, progress=False).features.V
    cosines = (V @ fitted.T).max(1).values
    return cosines.mean().item(), (cosines > 0.99).float().mean().item()


def main() -> None:
    """Measure every method on every seed."""
    rows = {}
    for name, method in METHODS.items():
        means, shares = zip(*(recovery(method, seed) for seed in SEEDS), strict=True)
        rows[name] = {"mean_max_cosine": means, "share_above_.99": shares}
        print(
            f"{name:14}  mean max cosine {min(means):.3f} … {max(means):.3f}   "
            f"above .99 {min(shares):.0%} … {max(shares):.0%}",
            flush=True,
        )
    save("planted", {"environment": environment(), "seeds": list(SEEDS), "rows": rows})


if __name__ == "__main__":
    main()
