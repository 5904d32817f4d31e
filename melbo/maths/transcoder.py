"""The transcoder Δ̂(θ) = Σ α_ℓ σ(⟨v_ℓ, θ⟩) u_ℓ: its kernel, and the strengths that fit Δ best.

For fixed directions the loss is L = const − 2αᵀb + αᵀKα. The best strengths are α* = K⁻¹b, which
explain bᵀK⁻¹b of it, or the best of those that are not negative (docs/method.md §2).
"""

from typing import Literal, NamedTuple

import torch
from scipy.optimize import nnls
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

    An entry is ⟨u, u'⟩·κ(⟨v, v'⟩) with κ(c) = c, 2c² or eᶜ − 1: the sum over the orders k of (1/k!)
    times the inner product of the k-th derivatives of ⟨v, θ⟩, ⟨v, θ⟩² or e^⟨v, θ⟩ − 1.

    Args:
        V: Unit rows ``[m, d_source]``.
        U: Unit rows ``[m, d_target]``.
        activation: σ, which sets κ.
    """
    cosine = V @ V.T
    kappa = {"linear": cosine, "quadratic": 2 * cosine**2, "exponential": torch.expm1(cosine)}
    return (U @ U.T) * kappa[activation]


def fit_strengths(
    V: Tensor,
    U: Tensor,
    b: Tensor,
    activation: Activation,
    ridge: float = 1e-6,
    nonnegative: bool = False,
) -> Factors:
    """Factors with the strengths that explain most (docs/method.md §2).

    Where a value is not finite, ``explained`` and ``alpha`` are nan; no error is raised.

    Args:
        V: Unit rows ``[m, d_source]``.
        U: Unit rows ``[m, d_target]``.
        b: Inner product of each factor with Δ_R ``[m]``: R·uᵀJv, R²·H(u, v, v) or ⟨u, Δ_R(v)⟩.
        activation: σ.
        ridge: Added to the diagonal of K, relative to its mean; K is singular when factors repeat.
        nonnegative: Whether no strength may be negative. Factors that would need one get 0, and so
            do repeats: of factors that are the same, one has all the strength.
    """
    K = kernel(V.double(), U.double(), activation)
    b = b.to(K)
    damped = K + ridge * K.diagonal().mean() * torch.eye(len(K)).to(K)
    if not torch.isfinite(damped).all() or not torch.isfinite(b).all():
        # the driver of iterative methods stops on nan
        return Factors(V, U, torch.full_like(V[:, 0], torch.nan), b.to(V), float("nan"))
    if nonnegative:
        rows = _different(K, b, 10 * ridge)
        alpha = torch.zeros_like(b)
        alpha[rows] = _nonnegative_strengths(damped[rows][:, rows], b[rows])
    else:
        alpha = torch.cholesky_solve(b[:, None], torch.linalg.cholesky(damped))[:, 0]
    return Factors(V, U, alpha.to(V), b.to(V), (2 * alpha @ b - alpha @ K @ alpha).item())


def _nonnegative_strengths(K: Tensor, b: Tensor) -> Tensor:
    """Maximum of 2αᵀb − αᵀKα over α ≥ 0.

    With K = LLᵀ that is the least-squares problem min ‖Lᵀα − L⁻¹b‖, which non-negative least
    squares solves (Lawson & Hanson 1974).
    """
    L = torch.linalg.cholesky(K)
    alpha = torch.cholesky_solve(b[:, None], L)[:, 0]
    if (alpha >= 0).all():
        return alpha
    goal = torch.linalg.solve_triangular(L, b[:, None], upper=False)[:, 0]
    try:
        found, _ = nnls(L.T.cpu().numpy(), goal.cpu().numpy(), maxiter=10 * len(b))
    except RuntimeError:
        # it goes round in circles, which only rounding can make it do: the best multiple of a guess
        guess = alpha.clamp_min(0)
        return guess * ((guess @ b) / (guess @ K @ guess)).nan_to_num().clamp_min(0)
    return torch.from_numpy(found).to(K)


def _different(K: Tensor, b: Tensor, tol: float) -> Tensor:
    """Indices of factors without repeats, ascending.

    Factors i and j repeat each other where K_ij / √(K_ii K_jj) > 1 − ``tol``: the ridge would share
    one strength among them. Of those the one with the largest b stays.
    """
    size = K.diagonal().clamp_min(torch.finfo(K.dtype).tiny).sqrt()
    alike = (K / size / size[:, None] > 1 - tol).fill_diagonal_(False).cpu()
    stays = torch.ones(len(b), dtype=torch.bool)
    if alike.any():
        for i in b.argsort(descending=True, stable=True).tolist():
            if stays[i]:
                stays &= ~alike[i]
    return stays.nonzero()[:, 0].to(b.device)


def exponential_factors(V: Tensor, D: Tensor, nonnegative: bool = True) -> Factors:
    """Factors of the exponential transcoder with given directions and their responses.

    u = D/‖D‖ and b = ⟨u, Δ_R(v)⟩ = ‖D‖ for each direction.

    Args:
        V: Unit rows ``[m, d_source]``.
        D: Their responses Δ_R(v) ``[m, d_target]``.
        nonnegative: See `fit_strengths`.
    """
    b = D.norm(dim=-1)
    return fit_strengths(V, unit(D), b, "exponential", nonnegative=nonnegative)
