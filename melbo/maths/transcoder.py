"""The transcoder Δ̂(θ) = Σ α_ℓ σ(⟨v_ℓ, θ⟩) u_ℓ: its kernel, and the strengths that fit Δ best.

For fixed directions the loss is L = const − 2αᵀb + αᵀKα. The best strengths are then α* = K⁻¹b, and
they explain bᵀK⁻¹b of it (docs/method.md §2).
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from melbo.maths.linalg import unit

Activation = Literal["linear", "quadratic", "exponential"]


class Factors(NamedTuple):
    """Fitted factors (v, u) of a transcoder, with their strengths.

    Attributes:
        V: Source directions, unit rows ``[m, d_source]``.
        U: Target directions, unit rows ``[m, d_target]``.
        alpha: Strengths α ``[m]``.
        b: Inner product of each factor with Δ_R ``[m]`` (see `fit_strengths`).
        explained: 2αᵀb − αᵀKα, in squared units of Δ.
    """

    V: Tensor
    U: Tensor
    alpha: Tensor
    b: Tensor
    explained: float


def kernel(V: Tensor, U: Tensor, activation: Activation) -> Tensor:
    """Inner products of the factors' derivative tensors, K ``[m, m]``.

    An entry is ⟨u, u'⟩·κ(⟨v, v'⟩) with κ(c) = c, c² or eᶜ − 1.

    Args:
        V: Unit rows ``[m, d_source]``.
        U: Unit rows ``[m, d_target]``.
        activation: σ, which sets κ.
    """
    cosine = V @ V.T
    kappa = {"linear": cosine, "quadratic": cosine**2, "exponential": torch.expm1(cosine)}
    return (U @ U.T) * kappa[activation]


def fit_strengths(
    V: Tensor, U: Tensor, b: Tensor, activation: Activation, ridge: float = 1e-6
) -> Factors:
    """Factors with the strengths that explain most (docs/method.md §2).

    Where a value is not finite, ``explained`` and ``alpha`` are nan; no error is raised.

    Args:
        V: Unit rows ``[m, d_source]``.
        U: Unit rows ``[m, d_target]``.
        b: Inner product of each factor with Δ_R ``[m]``: R·uᵀJv, R²·H(u, v, v) or ⟨u, Δ_R(v)⟩.
        activation: σ.
        ridge: Added to the diagonal of K, relative to its mean; K is singular when factors repeat.
    """
    K = kernel(V.double(), U.double(), activation)
    b = b.to(K)
    damped = K + ridge * K.diagonal().mean() * torch.eye(len(K)).to(K)
    if not torch.isfinite(damped).all() or not torch.isfinite(b).all():
        # the driver of iterative methods stops on nan
        return Factors(V, U, torch.full_like(V[:, 0], torch.nan), b.to(V), float("nan"))
    alpha = torch.cholesky_solve(b[:, None], torch.linalg.cholesky(damped))[:, 0]
    return Factors(V, U, alpha.to(V), b.to(V), (2 * alpha @ b - alpha @ K @ alpha).item())


def exponential_factors(V: Tensor, D: Tensor) -> Factors:
    """Factors of the exponential transcoder with given directions and their responses.

    u = D/‖D‖ and b = ⟨u, Δ_R(v)⟩ = ‖D‖ for each direction.

    Args:
        V: Unit rows ``[m, d_source]``.
        D: Their responses Δ_R(v) ``[m, d_target]``.
    """
    return fit_strengths(V, unit(D), D.norm(dim=-1), "exponential")
