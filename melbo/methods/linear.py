"""First order: singular vectors of the Jacobian, of all of it or of a few random projections."""

from dataclasses import dataclass

import torch
from torch import Tensor

from melbo.maps.base import Map
from melbo.maps.jacobian import Jacobian
from melbo.maps.smooth import SmoothMap, require_smooth
from melbo.maths.linalg import (
    orthogonalise,
    random_rows,
    require_finite,
    singular_signs,
    top_singular,
    unit,
)
from melbo.maths.transcoder import Factors, fit_strengths
from melbo.methods.base import Direct
from melbo.methods.starts import projected_start

# small blocks need fewer products in all, large ones run at a better rate
_SMALLEST_BLOCK = 8
# blocks that the iteration usually takes
_USUAL_BLOCKS = 8


@dataclass(frozen=True)
class Linear(Direct):
    """The linear transcoder: singular pairs of J(0), strongest first (docs/method.md §3).

    V are right and U left singular vectors, and α = R·σ. The sign of a pair is arbitrary (the
    largest entry of v is positive): evaluate both.

    Where m is much smaller than the sides of J, block Krylov iteration reaches the leading pairs in
    a few products, and J is not written out. J is written out where that costs less, or where the
    iteration has cost as much without reaching ``tol``.

    Attributes:
        num_factors: m ≤ min(d_source, d_target).
        scale: R.
        tol: Residual ‖Jᵀu − σv‖ / σ of each pair at which the iteration stops.
    """

    tol: float = 1e-4
    signed = False

    def check(self, map: Map) -> None:
        """Refuse a map without a Jacobian, and m > min(d_source, d_target)."""
        super().check(map)
        require_smooth(map)
        room = min(map.d_source, map.d_target)
        self.check_room(room, "a Jacobian has that many singular vectors and")

    def solve(self, map: Map, generator: torch.Generator) -> Factors:
        """Leading singular pairs."""
        smooth = require_smooth(map)
        V, U = singular_signs(*self._singular_pairs(Jacobian(smooth), generator))
        return _first_order(smooth, V, U, self.scale)

    def _singular_pairs(self, J: Jacobian, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        m = self.num_factors
        # a value that repeats is found once for each row of the block
        block = max(_SMALLEST_BLOCK, m)
        # products with J and with Jᵀ cost about the same, and min(shape) of either give all of J
        affordable = min(J.shape) // (2 * block)
        if affordable >= _USUAL_BLOCKS:
            rows = random_rows(block, J.shape[1], generator).to(J.map.device, J.map.dtype)
            start = orthogonalise(rows, "qr")
            V, U, _, residual = top_singular(J.matmat, J.rmatmat, start, m, self.tol, affordable)
            if residual < self.tol:
                return V, U
        U, _, V = torch.linalg.svd(require_finite(J.to_dense()), full_matrices=False)
        return V[:m], U.T[:m]


@dataclass(frozen=True)
class ProjectedLinear(Direct):
    """Right singular vectors of W·J for a few random unit output directions W (docs/method.md §3).

    A row of W costs one vector–Jacobian product. Only the first ``num_projections`` factors mean
    something; the others are random rows orthonormal to them. U = normalise(JV).

    Attributes:
        num_factors: m ≤ d_source.
        scale: R.
        num_projections: Number of rows of W.
    """

    num_projections: int = 32
    signed = False

    def check(self, map: Map) -> None:
        """Refuse a map without a Jacobian, and m > d_source."""
        super().check(map)
        require_smooth(map)
        self.check_room(map.d_source, "orthonormal rows are added and")

    def solve(self, map: Map, generator: torch.Generator) -> Factors:
        """The projected singular vectors and what they do."""
        smooth = require_smooth(map)
        V = projected_start(smooth, self.num_factors, generator, self.num_projections)
        return _first_order(smooth, V, None, self.scale)


def _first_order(map: SmoothMap, V: Tensor, U: Tensor | None, scale: float) -> Factors:
    """Linear factors with given directions, b = R·uᵀJv; U = normalise(JV) if left out."""
    JV = map.jvp(V)
    U = unit(JV) if U is None else U
    return fit_strengths(V, U, scale * (U * JV).sum(-1), "linear")
