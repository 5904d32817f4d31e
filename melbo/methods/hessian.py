"""The Hessian of the MELBO objective at zero, and its relation to the Jacobian."""

from dataclasses import dataclass

import torch

from melbo.maps.base import Map
from melbo.maps.smooth import require_smooth
from melbo.maths.linalg import orthogonalise, random_rows, singular_signs, top_singular, unit
from melbo.maths.transcoder import Factors, fit_strengths
from melbo.methods.base import Direct


@dataclass(frozen=True)
class ObjectiveHessian(Direct):
    """Leading eigenvectors of ∇²F(0) for F(θ) = ‖Δ(θ)‖² (docs/method.md §6).

    F is MELBO's objective with p = 2 and q = 1. The eigenvectors come from Hessian–vector products,
    by block Krylov iteration.

    Since Δ(0) = 0, they are the right singular vectors of the map's Jacobian, with eigenvalues 2σ².
    On a map with ``concatenate=True`` that is the Jacobian stacked over prompts and tokens, whose
    singular vectors are not those of the averaged response. U = normalise(Jv) and α = R·σ. The sign
    is arbitrary.

    Attributes:
        num_factors: m ≤ d_source.
        scale: R.
        tol: Residual ‖Hv − λv‖ / λ₁ at which the iteration stops.
    """

    tol: float = 1e-4
    signed = False

    def check(self, map: Map) -> None:
        """Refuse a map without derivatives at zero, and m > d_source."""
        super().check(map)
        require_smooth(map)
        self.check_room(map.d_source, "a Hessian has that many eigenvectors and")

    def solve(self, map: Map, generator: torch.Generator) -> Factors:
        """The leading eigenvectors, largest eigenvalue first."""
        smooth = require_smooth(map)
        block = min(max(8, self.num_factors // 2), map.d_source)
        rows = random_rows(block, map.d_source, generator).to(map.device, map.dtype)
        V, _, _, _ = top_singular(
            smooth.square_hvp,
            smooth.square_hvp,
            orthogonalise(rows, "qr"),
            self.num_factors,
            self.tol,
            max_iterations=-(-map.d_source // block),
        )
        JV = smooth.jvp(V)
        V, U = singular_signs(V, unit(JV))
        return fit_strengths(V, U, self.scale * JV.norm(dim=-1), "linear")
