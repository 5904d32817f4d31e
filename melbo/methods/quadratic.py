"""Second order: directions of largest curvature, from the true Hessian of the map."""

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
    """Directions between two sweeps.

    Attributes:
        V: Unit rows ``[m, d_source]``, not yet pushed apart.
        found: Factors that the last sweep evaluated.
    """

    V: Tensor
    found: Factors | None = None


@dataclass(frozen=True)
class Quadratic(Iterative):
    """The quadratic transcoder, by alternating least squares on H (docs/method.md §3).

    Each sweep: V ← orthogonalise(V); u ← normalise H(·, v, v); v ← normalise H(u, v, ·). U is not
    orthogonalised. To second order the response at −v is the one at v, so the sign of v is
    arbitrary: evaluate both.

    Attributes:
        num_factors: m ≤ d_source.
        scale: R; it matters to the strengths only.
        max_steps: Largest number of sweeps.
        tol: See `melbo.methods.iterate.iterate`.
        orthogonalise: ``"qr"`` or ``"polar"``.
    """

    max_steps: int = 10
    tol: float = 1e-3
    orthogonalise: Literal["qr", "polar"] = "qr"
    signed = False

    def check(self, map: Map) -> None:
        """Refuse a map without derivatives at zero, and settings that cannot work on it.

        Raises:
            MelboError: ``orthogonalise`` is neither ``"qr"`` nor ``"polar"``.
        """
        super().check(map)
        require_smooth(map)
        if self.orthogonalise not in ("qr", "polar"):
            raise MelboError(
                f"orthogonalise is {self.orthogonalise!r}: "
                "expected 'qr' or 'polar' for the quadratic method"
            )
        self.check_room(map.d_source, f"with orthogonalise={self.orthogonalise!r}")

    def init(self, map: Map, generator: torch.Generator) -> _State:
        """The projected-linear start."""
        return _State(projected_start(require_smooth(map), self.num_factors, generator))

    def step(self, map: Map, state: _State) -> tuple[_State, Record]:
        """One sweep over all factors."""
        smooth = require_smooth(map)
        V = orthogonalise(state.V, self.orthogonalise)
        found = self._factors(smooth, V)
        moved = unit(smooth.hvp(found.U, V), fallback=V)
        record = {
            "objective": found.b.mean().item(),
            "explained": found.explained,
            "change": (1 - (moved * state.V).sum(-1).abs()).max().item(),
        }
        return _State(moved, found), record

    def finish(self, map: Map, state: _State) -> Factors:
        """Factors at the final V."""
        return self._factors(require_smooth(map), state.V)

    def _factors(self, map: SmoothMap, V: Tensor) -> Factors:
        """U = normalise H(·, v, v), and α from b = R²·H(u, v, v)."""
        curvature = map.bilinear(V, V)
        b = self.scale**2 * curvature.norm(dim=-1)
        return fit_strengths(V, unit(curvature), b, "quadratic")
