"""The Hessian of the MELBO objective at zero, and what it has to do with the Jacobian (METHOD §6)."""

from dataclasses import dataclass

import torch

from melbo.maps.base import Map
from melbo.maps.smooth import require_smooth
from melbo.maths.linalg import orthogonalise, random_rows, singular_signs, top_singular, unit
from melbo.maths.transcoder import Factors, fit_strengths
from melbo.methods.base import Direct


@dataclass(frozen=True)
class ObjectiveHessian(Direct):
    """Leading eigenvectors of ∇²F(0) for F(θ) = ‖Δ(θ)‖² (MELBO's objective with p = 2, q = 1), by block Krylov on Hessian–vector products.

    They are the right singular vectors of the Jacobian of the same map, eigenvalue 2σ², since Δ(0) = 0; on a map with ``concatenate=True``
    of the Jacobian stacked over prompts and tokens, which is not that of the averaged response. U = normalise(Jv), α = R·σ. The sign is arbitrary.

    Attributes:
        num_factors: m ≤ d_source.
        scale: R.
        tol: Residual ‖Hv − λv‖ / λ₁ at which the iteration stops.
    """

    tol: float = 1e-4
    signed = False

    def check(self, map: Map) -> None:
        """See `Method.check`; also m ≤ d_source."""
        super().check(map)
        require_smooth(map)
        self.check_room(map.d_source, "a Hessian has that many eigenvectors and")

    def solve(self, map: Map, generator: torch.Generator) -> Factors:
        """The leading eigenvectors, largest eigenvalue first."""
        map = require_smooth(map)
        block = min(max(8, self.num_factors // 2), map.d_source)
        start = orthogonalise(
            random_rows(block, map.d_source, generator).to(map.device, map.dtype), "qr"
        )
        V, _, _, _ = top_singular(
            map.square_hvp,
            map.square_hvp,
            start,
            self.num_factors,
            self.tol,
            -(-map.d_source // block),
        )
        JV = map.jvp(V)
        V, U = singular_signs(V, unit(JV))
        return fit_strengths(V, U, self.scale * JV.norm(dim=-1), "linear")
