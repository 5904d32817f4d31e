"""First order: singular vectors of the Jacobian, whole or seen through a few random output directions."""

from dataclasses import dataclass

import torch
from torch import Tensor

from melbo.maps.base import Map
from melbo.maps.jacobian import Jacobian
from melbo.maps.smooth import require_smooth
from melbo.maths.linalg import orthogonalise, random_rows, singular_signs, top_singular
from melbo.maths.transcoder import Factors
from melbo.methods.base import Direct
from melbo.methods.starts import first_order, projected_start

_SMALLEST_BLOCK, _USUAL_BLOCKS = 8, 16


@dataclass(frozen=True)
class Linear(Direct):
    """The linear transcoder: V right and U left singular vectors of J(0), strongest first; α = R·σ (METHOD §3).

    The sign of a pair is arbitrary (largest entry of v positive): evaluate both. J is not written out where m is much smaller than its
    sides: block Krylov iteration then reaches the leading pairs in a few products. It is where that would cost less, or the iteration
    has not reached ``tol`` by the time it has cost as much.

    Attributes:
        num_factors: m ≤ min(d_source, d_target).
        scale: R.
        tol: Residual ‖Jᵀu − σv‖ / σ₁ at which the iteration stops.
    """

    tol: float = 1e-4
    signed = False

    def check(self, map: Map) -> None:
        """See `Method.check`; also m ≤ min(d_source, d_target)."""
        super().check(map)
        require_smooth(map)
        self.check_room(
            min(map.d_source, map.d_target), "a Jacobian has that many singular vectors and"
        )

    def solve(self, map: Map, generator: torch.Generator) -> Factors:
        """The leading singular pairs."""
        map = require_smooth(map)
        V, U = self._singular_pairs(Jacobian(map), generator)
        V, U = singular_signs(V, U)
        return first_order(map, V, U, self.scale)

    def _singular_pairs(self, J: Jacobian, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        # small blocks need fewer products in all, large ones run at a better rate
        block = max(_SMALLEST_BLOCK, self.num_factors // 2)
        # products with J and with Jᵀ cost about the same, and min(shape) of either give all of J
        affordable = min(J.shape) // (2 * block)
        if affordable >= _USUAL_BLOCKS:
            start = orthogonalise(
                random_rows(block, J.shape[1], generator).to(J.map.device, J.map.dtype), "qr"
            )
            V, U, _, residual = top_singular(
                J.matmat, J.rmatmat, start, self.num_factors, self.tol, affordable
            )
            if residual < self.tol:
                return V, U
        U, _, V = torch.linalg.svd(J.to_dense(), full_matrices=False)
        return V[: self.num_factors], U.T[: self.num_factors]


@dataclass(frozen=True)
class ProjectedLinear(Direct):
    """Right singular vectors of W·J for a few random unit output directions W, by one vector–Jacobian product each (METHOD §3).

    Only the first ``num_projections`` factors mean something; the rest are random rows orthonormal to them.

    Attributes:
        num_factors: m ≤ d_source.
        scale: R.
        num_projections: Rows of W.
    """

    num_projections: int = 32
    signed = False

    def check(self, map: Map) -> None:
        """See `Method.check`; also m ≤ d_source."""
        super().check(map)
        require_smooth(map)
        self.check_room(map.d_source, "orthonormal rows are added and")

    def solve(self, map: Map, generator: torch.Generator) -> Factors:
        """The projected singular vectors, with U = normalise(JV)."""
        map = require_smooth(map)
        V = projected_start(map, self.num_factors, generator, self.num_projections)
        return first_order(map, V, None, self.scale)
