"""Recovery of planted factors: Δ = U·expm1(Vᵀθ), d = 4096, 32 true unit factors, 512 sought, R = 1, ten sweeps (METHOD §11).

python benchmarks/planted.py    prints a table and writes benchmarks/results/planted.json
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from melbo import Exponential, FunctionMap, fit
from melbo.maths.linalg import random_rows
from melbo.records import environment

SEEDS = range(6)


@dataclass(frozen=True)
class RowOrder(Exponential):
    """QR in row order, as it was before the strongest gradients came first."""

    def step(self, map, state):
        """A sweep that does not know the gains."""
        return super().step(map, state._replace(gain=torch.ones_like(state.gain)))


METHODS = {
    "qr, row order": RowOrder(512, 1.0),
    "qr": Exponential(512, 1.0),
    "polar": Exponential(512, 1.0, orthogonalise="polar"),
    "soft": Exponential(512, 1.0, orthogonalise="soft"),
}


def recovery(method: Exponential, seed: int) -> tuple[float, float]:
    """Mean over true factors of the best cosine among those found, and the share above .99."""
    draw = torch.Generator().manual_seed(1000 + seed)
    V, U = random_rows(32, 4096, draw), random_rows(32, 4096, draw)
    toy = FunctionMap(lambda theta: torch.expm1(theta @ V.T) @ U, 4096, 4096)
    cosines = (V @ fit(toy, method, seed=seed, progress=False).features.V.T).max(1).values
    return cosines.mean().item(), (cosines > 0.99).float().mean().item()


def main() -> None:
    """Measure every method on every seed."""
    rows = {}
    for name, method in METHODS.items():
        found = [recovery(method, seed) for seed in SEEDS]
        means, shares = zip(*found, strict=True)
        rows[name] = {"mean_max_cosine": means, "share_above_.99": shares}
        print(
            f"{name:14}  mean max cosine {min(means):.3f} … {max(means):.3f}   above .99 {min(shares):.0%} … {max(shares):.0%}",
            flush=True,
        )
    out = Path(__file__).parent / "results" / "planted.json"
    out.write_text(
        json.dumps({"environment": environment(), "seeds": list(SEEDS), "rows": rows}, indent=1)
        + "\n"
    )


if __name__ == "__main__":
    main()
