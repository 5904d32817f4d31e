"""The transcoder Δ̂(θ) = Σ α_ℓ σ(⟨v_ℓ, θ⟩) u_ℓ: its kernel, its strengths, and how much of Δ it explains.

For fixed directions the loss is L = const − 2αᵀb + αᵀKα (METHOD §2), so the best strengths are α* = K⁻¹b and what they explain is bᵀK⁻¹b.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from melbo.maths.linalg import unit

Activation = Literal["linear", "quadratic", "exponential"]


class Factors(NamedTuple):
    """What a method finds.

    ``V`` ``[m, d_source]`` and ``U`` ``[m, d_target]`` have unit rows; ``alpha`` and ``b`` (see `fit_strengths`) are ``[m]``; ``explained`` is
    2αᵀb − αᵀKα, in squared units of Δ.
    """

    V: Tensor
    U: Tensor
    alpha: Tensor
    b: Tensor
    explained: float


def kernel(V: Tensor, U: Tensor, activation: Activation) -> Tensor:
    """K ``[m, m]``: the inner products of the factors' derivative tensors, ⟨u,u'⟩·κ(⟨v,v'⟩) with κ(c) = c, c² or eᶜ − 1."""
    cosine = V @ V.T
    return (U @ U.T) * {
        "linear": cosine,
        "quadratic": cosine**2,
        "exponential": torch.expm1(cosine),
    }[activation]


def fit_strengths(
    V: Tensor, U: Tensor, b: Tensor, activation: Activation, ridge: float = 1e-6
) -> Factors:
    """The factors (v, u) with the strengths that explain most.

    Args:
        V: Unit rows ``[m, d_source]``.
        U: Unit rows ``[m, d_target]``.
        b: Inner product of each factor with Δ_R ``[m]``: R·uᵀJv, R²·H(u,v,v) or ⟨u, Δ_R(v)⟩.
        activation: σ.
        ridge: Added to the diagonal, relative to its mean: K is singular when factors repeat.

    Values that are not finite give an ``explained`` that is not a number, and no error.
    """
    K = kernel(V.double(), U.double(), activation)
    b = b.to(K)
    damped = K + ridge * K.diagonal().mean() * torch.eye(len(K)).to(K)
    if not torch.isfinite(damped).all() or not torch.isfinite(b).all():  # the driver stops on it
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
