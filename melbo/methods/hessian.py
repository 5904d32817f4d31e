"""The Hessian of the MELBO objective at zero, and its relation to the Jacobian."""

from dataclasses import dataclass

import torch
from torch import Tensor

from melbo.errors import MelboError
from melbo.maps.base import Map
from melbo.maps.smooth import SmoothMap, require_smooth
from melbo.maths.linalg import orthogonalise, random_rows, singular_signs, top_eigen, unit
from melbo.maths.transcoder import Factors, fit_strengths
from melbo.methods.base import Direct

# eigenpairs found beyond those asked for
_SPARE = 8
_MOST_STEPS = 6


@dataclass(frozen=True)
class ObjectiveHessian(Direct):
    """Leading eigenvectors of ∇²F(0) for F(θ) = ‖Δ(θ)‖² (docs/method.md §6).

    F is MELBO's objective with p = 2 and q = 1. The eigenvectors come from Hessian–vector products,
    by block Krylov iteration, and are told apart within their span by the Jacobian, which has the
    square root of the Hessian's condition number.

    Since Δ(0) = 0, they are the right singular vectors of the map's Jacobian, with eigenvalues 2σ².
    On a map with ``concatenate=True`` that is the Jacobian stacked over prompts and tokens, whose
    singular vectors are not those of the averaged response. U = normalise(Jv) and α = R·σ. The sign
    is arbitrary.

    Attributes:
        num_factors: m ≤ d_source.
        scale: R.
        tol: Residual ‖Hv − λv‖ / λ of each pair at which the iteration stops.
    """

    tol: float = 1e-4
    signed = False

    def check(self, map: Map) -> None:
        """Refuse a map without derivatives at zero, and m > d_source."""
        super().check(map)
        require_smooth(map)
        self.check_room(map.d_source, "a Hessian has that many eigenvectors and")

    def solve(self, map: Map, generator: torch.Generator) -> Factors:
        """The leading eigenvectors, largest eigenvalue first.

        Raises:
            MelboError: Some of them are lost in rounding: their σ is below √ε of the largest.
        """
        smooth = require_smooth(map)
        # a value that repeats is found once for each row of the block; the last few pairs are the
        # least exact, so some more are found than are kept
        block = min(self.num_factors + _SPARE, map.d_source)
        rows = random_rows(block, map.d_source, generator).to(map.device, map.dtype)
        V, _, _ = top_eigen(
            smooth.square_hvp,
            orthogonalise(rows, "qr"),
            block,
            self.tol,
            max_iterations=-(-map.d_source // block),
        )
        V, sigma = self._refined(smooth, V)
        self._check_resolved(sigma[: self.num_factors])
        V = V[: self.num_factors]
        JV = smooth.jvp(V)
        V, U = singular_signs(V, unit(JV))
        return fit_strengths(V, U, self.scale * JV.norm(dim=-1), "linear")

    def _refined(self, map: SmoothMap, V: Tensor) -> tuple[Tensor, Tensor]:
        """Right singular vectors of the Jacobian in the span of V, and their σ, descending.

        Steps with JᵀJ follow until σ of the pairs asked for stands still: small eigenvalues come
        out of rounding of the Hessian, as large as the largest one's.
        """
        before = V.new_zeros(self.num_factors)
        for _ in range(_MOST_STEPS):
            images = map.jvp(V)
            turn, sigma, _ = torch.linalg.svd(images, full_matrices=False)
            V = orthogonalise(turn.T @ V, "qr")
            wanted = sigma[: self.num_factors]
            if ((wanted - before).abs() <= self.tol * wanted).all():
                break
            before = wanted
            V = orthogonalise(map.vjp(unit(turn.T @ images)), "qr")
        return V, sigma

    def _check_resolved(self, sigma: Tensor) -> None:
        """Refuse eigenvectors that products with the Hessian cannot tell from rounding.

        Args:
            sigma: Square roots of the eigenvalues over √2 ``[m]``, descending.

        Raises:
            MelboError: There are some.
        """
        exact = torch.finfo(sigma.dtype).eps ** 0.5
        found = int((sigma > exact * sigma[0]).sum())
        if 0 < found < len(sigma):
            raise MelboError(
                f"num_factors is {self.num_factors}, but in {str(sigma.dtype)[6:]} this Hessian "
                f"has {found} eigenvectors that are not lost in rounding: ask for {found}, "
                "or use Linear, which needs no Hessian"
            )
