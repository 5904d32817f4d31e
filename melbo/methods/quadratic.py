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
        W: The other estimate of the same directions; V itself where there is one.
        sweeps: Number of sweeps taken.
        found: Factors that the last sweep evaluated.
    """

    V: Tensor
    W: Tensor
    sweeps: int = 0
    found: Factors | None = None


@dataclass(frozen=True)
class Quadratic(Iterative):
    """The quadratic transcoder, by alternating least squares on H (docs/method.md §3).

    Each sweep: V ← orthogonalise(V); u ← normalise H(·, v, v); v ← normalise H(u, v, ·). U is not
    orthogonalised. To second order the response at −v is the one at v, so the sign of v is
    arbitrary: evaluate both.

    With ``orthogonal_sweeps`` (Hybrid-ALS) only the first sweeps orthogonalise. The others are
    least squares in U and in V, which correlated factors are fixed points of.

    Attributes:
        num_factors: m ≤ d_source.
        scale: R; it matters to the strengths only.
        max_steps: Largest number of sweeps.
        tol: See `melbo.methods.iterate.iterate`.
        orthogonalise: ``"qr"`` or ``"polar"``.
        estimates: 1, or 2 for two estimates of V with starts of their own, as in Orth-ALS: u ←
            normalise H(·, v, w), v ← normalise H(u, w, ·), w ← normalise H(u, v, ·). The result
            is the mean of both.
        orthogonal_sweeps: Number of sweeps that orthogonalise; all if left out.
    """

    max_steps: int = 10
    tol: float = 1e-3
    orthogonalise: Literal["qr", "polar"] = "qr"
    estimates: Literal[1, 2] = 1
    orthogonal_sweeps: int | None = None
    signed = False

    def check(self, map: Map) -> None:
        """Refuse a map without derivatives at zero, and settings that cannot work on it.

        Raises:
            MelboError: ``orthogonalise`` is neither ``"qr"`` nor ``"polar"``, ``estimates`` neither
                1 nor 2, or ``orthogonal_sweeps`` negative.
        """
        super().check(map)
        require_smooth(map)
        if self.orthogonalise not in ("qr", "polar"):
            raise MelboError(
                f"orthogonalise is {self.orthogonalise!r}: "
                "expected 'qr' or 'polar' for the quadratic method"
            )
        if self.estimates not in (1, 2) or (self.orthogonal_sweeps or 0) < 0:
            raise MelboError(
                f"got estimates={self.estimates}, orthogonal_sweeps={self.orthogonal_sweeps}: "
                "expected 1 or 2 estimates, and at least 0 sweeps"
            )
        self.check_room(map.d_source, f"with orthogonalise={self.orthogonalise!r}")

    def init(self, map: Map, generator: torch.Generator) -> _State:
        """The projected-linear start; that of a second estimate has other projections."""
        smooth = require_smooth(map)
        V = projected_start(smooth, self.num_factors, generator)
        other = self.estimates == 2
        return _State(V, projected_start(smooth, self.num_factors, generator) if other else V)

    def step(self, map: Map, state: _State) -> tuple[_State, Record]:
        """One sweep over all factors."""
        smooth, V, W = require_smooth(map), state.V, state.W
        apart = self.orthogonal_sweeps is None or state.sweeps < self.orthogonal_sweeps
        if apart:
            V = orthogonalise(V, self.orthogonalise)
            W = orthogonalise(W, self.orthogonalise) if self.estimates == 2 else V
        one = self.estimates == 1
        found = self._factors(smooth, V) if one else self._factors(smooth, _mean(V, W))
        U = found.U if one else unit(_unmixed(smooth.bilinear(V, W), V, W))
        moved = unit(_unmixed(smooth.hvp(U, W), U, W), fallback=V)
        other = moved if one else unit(_unmixed(smooth.hvp(U, V), U, V), fallback=W)
        record = {
            "objective": found.b.mean().item(),
            "explained": found.explained,
            "change": (1 - (moved * state.V).sum(-1).abs()).max().item(),
        }
        return _State(moved, other, state.sweeps + 1, found), record

    def finish(self, map: Map, state: _State) -> Factors:
        """Factors at the final V."""
        V = state.V if self.estimates == 1 else _mean(state.V, state.W)
        return self._factors(require_smooth(map), V)

    def _factors(self, map: SmoothMap, V: Tensor) -> Factors:
        """U = normalise H(·, v, v), or its least squares, and α from b = R²·H(u, v, v)."""
        curvature = map.bilinear(V, V)
        hybrid = self.orthogonal_sweeps is not None
        U = unit(_unmixed(curvature, V, V) if hybrid else curvature)
        b = self.scale**2 * (U * curvature).sum(-1)
        return fit_strengths(V, U, b, "quadratic")


def _mean(V: Tensor, W: Tensor) -> Tensor:
    """Mean of two estimates of each direction, whose signs are arbitrary."""
    sign = (V * W).sum(-1, keepdim=True).sign()
    return unit(V + sign * W, fallback=V)


def _unmixed(rows: Tensor, A: Tensor, B: Tensor, ridge: float = 1e-6) -> Tensor:
    """Rows X of the least-squares fit of Σ x ⊗ a ⊗ b to a tensor T, from the rows T(·, a, b).

    They are G⁻¹ times these, G_ij = ⟨a_i, a_j⟩⟨b_i, b_j⟩, which is 1 where a or b are orthonormal.
    """
    G = (A @ A.T) * (B @ B.T)
    G = G + ridge * torch.eye(len(G)).to(G)
    solved: Tensor = torch.linalg.solve(G, rows)
    return solved
