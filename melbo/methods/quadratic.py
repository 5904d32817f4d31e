"""Second order: directions whose curvature is largest, from the true Hessian of the map."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from melbo.errors import MelboError
from melbo.maps.base import Map
from melbo.maps.smooth import SmoothMap, require_smooth
from melbo.maths.linalg import orthogonalise, unit
from melbo.maths.transcoder import Factors, fit_strengths
from melbo.methods.base import Iterative
from melbo.methods.iterate import Record
from melbo.methods.starts import projected_start


class _State(NamedTuple):
    V: Tensor  # [m, d_source], unit rows, not yet pushed apart
    found: Factors | None = None  # what the last sweep evaluated


@dataclass(frozen=True)
class Quadratic(Iterative):
    """The quadratic transcoder, by symmetric orthogonalised alternating least squares on H (METHOD §3).

    Each sweep: V ← orthogonalise(V); u ← normalise H(·, v, v); v ← normalise H(u, v, ·). U is not orthogonalised. The response at ±v is the
    same to second order, so the sign of v is arbitrary: evaluate both.

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
    signed = False

    def check(self, map: Map) -> None:
        """See `Method.check`; also m ≤ d_source."""
        super().check(map)
        require_smooth(map)
        if self.orthogonalise not in ("qr", "polar"):
            raise MelboError(
                f"orthogonalise is {self.orthogonalise!r}: expected 'qr' or 'polar' for the quadratic method"
            )
        self.check_room(map.d_source, f"with orthogonalise={self.orthogonalise!r}")

    def init(self, map: Map, generator: torch.Generator) -> _State:
        """The projected-linear start."""
        map = require_smooth(map)
        return _State(projected_start(map, self.num_factors, generator))

    def step(self, map: Map, state: _State) -> tuple[_State, Record]:
        """One sweep over all factors."""
        V = orthogonalise(state.V, self.orthogonalise)
        found = self._factors(require_smooth(map), V)
        moved = unit(require_smooth(map).hvp(found.U, V), fallback=V)
        change = (1 - (moved * state.V).sum(-1).abs()).max().item()
        return _State(moved, found), {
            "objective": found.b.mean().item(),
            "explained": found.explained,
            "change": change,
        }

    def finish(self, map: Map, state: _State) -> Factors:
        """U and α at the final V."""
        return self._factors(require_smooth(map), state.V)

    def _factors(self, map: SmoothMap, V: Tensor) -> Factors:
        """U = normalise H(·, v, v), and α from b = R²·H(u, v, v)."""
        curvature = map.bilinear(V, V)
        return fit_strengths(
            V, unit(curvature), self.scale**2 * curvature.norm(dim=-1), "quadratic"
        )
