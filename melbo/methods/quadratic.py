"""Second order: directions whose curvature is largest, from the true Hessian of the map."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import MelboError
from ..iterate import Record
from ..linalg import orthogonalise, unit
from ..oracles import Map
from ..transcoder import Factors, fit_strengths
from .base import Iterative
from .linear import projected_start


@dataclass(frozen=True)
class Quadratic(Iterative):
    """The quadratic transcoder, by symmetric orthogonalised alternating least squares on H (METHOD §3).

    Each sweep: V ← orthogonalise(V); u ← normalise H(·, v, v); v ← normalise H(u, v, ·). U is not orthogonalised. The response at ±v is the
    same to second order, so both signs belong to a factor; the one kept is that of ``v`` with α ≥ 0 along u.

    Attributes:
        num_factors: m ≤ d_source.
        scale: R; enters the strengths only.
        max_steps: Sweeps at most.
        tol: See `melbo.iterate`.
        orthogonalise: ``"qr"`` or ``"polar"``.
    """

    max_steps: int = 10
    tol: float = 1e-3
    orthogonalise: Literal["qr", "polar"] = "qr"

    def check(self, map: Map) -> None:
        """See `Method.check`; also m ≤ d_source."""
        super().check(map)
        if self.orthogonalise not in ("qr", "polar"):
            raise MelboError(f"orthogonalise is {self.orthogonalise!r}: expected 'qr' or 'polar' for the quadratic method")
        self.check_room(map.d_source, f"with orthogonalise={self.orthogonalise!r}")

    def init(self, map: Map, generator: torch.Generator) -> Tensor:
        """The projected-linear start."""
        return projected_start(map, self.num_factors, generator)

    def step(self, map: Map, state: Tensor) -> tuple[Tensor, Record]:
        """One sweep over all factors."""
        V = orthogonalise(state, self.orthogonalise)
        curvature = map.bilinear(V, V)  # H(·, v, v)
        size = curvature.norm(dim=-1)
        U = unit(curvature)
        moved = unit(map.hvp(U, V), fallback=V)
        explained = fit_strengths(V, U, self.scale**2 * size, "quadratic").explained
        change = (1 - (moved * state).sum(-1).abs()).max().item()
        return moved, {"objective": self.scale**2 * size.mean().item(), "explained": explained, "change": change}

    def finish(self, map: Map, state: Tensor) -> Factors:
        """U and α at the final V: b = R²·H(u, v, v)."""
        curvature = map.bilinear(state, state)
        return fit_strengths(state, unit(curvature), self.scale**2 * curvature.norm(dim=-1), "quadratic")
