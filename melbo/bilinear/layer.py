"""Bilinear layers y(x) = D[(Lx) ⊙ (Rx)], and what their weights say of a steering vector."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from melbo.bilinear.split import Split, check_weights, rows_like, vector_like
from melbo.errors import MelboError
from melbo.maps.function import FunctionMap
from melbo.maths.linalg import singular_signs


class CrossMap(NamedTuple):
    """The matrix C_s and its singular triplets, strongest first; r = min(d, d_out).

    Attributes:
        matrix: C_s ``[d_out, d]``.
        U: Left singular vectors, rows ``[r, d_out]``.
        sigma: Singular values ``[r]``.
        V: Right singular vectors, rows ``[r, d]``: activations to which s adds most.
    """

    matrix: Tensor
    U: Tensor
    sigma: Tensor
    V: Tensor


class Interaction(NamedTuple):
    """The matrix Q_u and its eigenvectors, largest |eigenvalue| first.

    Attributes:
        matrix: Q_u ``[d, d]``, symmetric.
        values: Eigenvalues ``[d]``.
        vectors: Eigenvectors, rows ``[d, d]``; their signs are arbitrary.
    """

    matrix: Tensor
    values: Tensor
    vectors: Tensor


# not compared by value: weights are tensors
@dataclass(frozen=True, eq=False)
class Bilinear:
    """The layer y(x) = D[(Lx) ⊙ (Rx)] (docs/bilinear.md).

    It has no biases, so y(ax) = a²y(x), and steering by αs is exactly quadratic in α.

    Attributes:
        L: ``[h, d]``; the gate, where there is one.
        R: ``[h, d]``.
        D: ``[d_out, h]``.

    Raises:
        MelboError: Shapes do not fit, or a weight is not finite or in half precision.
    """

    L: Tensor
    R: Tensor
    D: Tensor

    def __post_init__(self) -> None:
        """Refuse weights that do not fit together.

        Raises:
            MelboError: They do not.
        """
        L, R, D = (list(weight.shape) for weight in (self.L, self.R, self.D))
        if not (len(L) == len(D) == 2 and L == R and D[1] == L[0] and 0 not in (*L, *D)):
            raise MelboError(f"got L {L}, R {R}, D {D}: expected L and R [h, d], and D [d_out, h]")
        check_weights(L=self.L, R=self.R, D=self.D)

    @property
    def width(self) -> int:
        """Width d of what the layer reads."""
        return self.L.shape[1]

    def __call__(self, x: Tensor) -> Tensor:
        """y(x), rows ``[k, d] → [k, d_out]``."""
        (x,) = rows_like(self.D, self.width, x=x)
        return self._product(x, x)

    def split(self, x: Tensor, s: Tensor) -> Split:
        """Terms of y(x + αs) = y(x) + α·C_s x + α²·y(s).

        Args:
            x: Activations ``[k, d]``.
            s: Steering vectors ``[k, d]``; one row goes with all activations.
        """
        x, s = rows_like(self.D, self.width, x=x, s=s)
        return Split(self._product(x, x), self._cross(x, s), self._product(s, s))

    def shares(self, s: Tensor) -> Tensor:
        """Share of each hidden unit in y(s), ``[k, d] → [k, h]``.

        y(s) is the sum of what each unit writes, c_i = (Ls)_i (Rs)_i D_i. The share of unit i is
        ⟨c_i, y(s)⟩ / ‖y(s)‖², so shares sum to 1. It is negative for a unit that writes against
        y(s). No multiple of s changes it.

        Args:
            s: Steering vectors ``[k, d]``.

        Raises:
            MelboError: y(s) is zero, or what units write cancels to rounding.
        """
        (s,) = rows_like(self.D, self.width, s=s)
        # entries of 1 at most, so that the square of a small or large s stays in range
        s = s / s.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(s.dtype).tiny)
        hidden = (s @ self.L.T) * (s @ self.R.T)
        y = hidden @ self.D.T
        written = hidden.abs() @ self.D.norm(dim=0)
        zero = y.norm(dim=-1) <= 10 * torch.finfo(s.dtype).eps * written
        if zero.any():
            raise MelboError(
                f"the layer maps row {int(zero.int().argmax())} of s to zero, which has no shares: "
                "leave it out, or pass a vector that the layer responds to"
            )
        return hidden * (y @ self.D) / y.square().sum(-1, keepdim=True)

    def cross_map(self, s: Tensor) -> CrossMap:
        """C_s = D[diag(Rs)L + diag(Ls)R]: steering by αs adds α·C_s x at the activation x.

        Args:
            s: Steering vector ``[d]``.
        """
        s = vector_like(self.D, self.width, "s", s)
        hidden = (self.R @ s)[:, None] * self.L + (self.L @ s)[:, None] * self.R
        matrix = self.D @ hidden
        U, sigma, V = torch.linalg.svd(matrix, full_matrices=False)
        V, U = singular_signs(V, U.T)
        return CrossMap(matrix, U, sigma, V)

    def interaction(self, u: Tensor) -> Interaction:
        """Q_u = ½[Lᵀdiag(Dᵀu)R + Rᵀdiag(Dᵀu)L], for which ⟨u, y(x)⟩ = xᵀQ_u x.

        Args:
            u: Output direction ``[d_out]``.
        """
        u = vector_like(self.D, len(self.D), "u", u)
        half = self.L.T @ ((self.D.T @ u)[:, None] * self.R)
        matrix = (half + half.T) / 2
        values, vectors = torch.linalg.eigh(matrix)
        order = values.abs().argsort(descending=True, stable=True)
        rows, _ = singular_signs(vectors.T[order], vectors.T[order])
        return Interaction(matrix, values[order], rows)

    def map(self, x: Tensor | None = None) -> FunctionMap:
        """Δ(θ) = mean of y(x + θ) − y(x) over activations, as a map that every method runs on.

        J = C_x̄ at the mean activation x̄, and ½H(θ, θ) = y(θ) wherever it is taken: there is
        nothing beyond. Without activations J is zero, and only the second order is left.

        Args:
            x: Activations ``[n, d]``; zero if left out.
        """
        x = self.L.new_zeros(1, self.width) if x is None else x
        (rows,) = rows_like(self.D, self.width, x=x)
        # Δ is linear in x, so its mean is Δ at the mean
        mean = rows.mean(0, keepdim=True)

        def response(theta: Tensor) -> Tensor:
            return self._cross(mean, theta) + self._product(theta, theta)

        width = len(self.D)
        return FunctionMap(response, self.width, width, self.D.dtype, device=str(self.D.device))

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        """D[(La) ⊙ (Rb)]."""
        return ((a @ self.L.T) * (b @ self.R.T)) @ self.D.T

    def _cross(self, x: Tensor, s: Tensor) -> Tensor:
        """C_s x, which is C_x s."""
        hidden = (s @ self.R.T) * (x @ self.L.T) + (s @ self.L.T) * (x @ self.R.T)
        return hidden @ self.D.T
