"""The linear algebra of directions: rows of unit norm, orthogonalised with their signs kept; leading singular pairs."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Orthogonalise = Literal["qr", "polar", "soft"]


def unit(rows: Tensor, fallback: Tensor | None = None) -> Tensor:
    """Each row of ``[m, d]`` at norm 1; a row that is zero is taken from ``fallback``, or becomes the constant direction."""
    norm = rows.norm(dim=-1, keepdim=True)
    if fallback is None:
        fallback = torch.full_like(rows, rows.shape[-1] ** -0.5)
    return torch.where(norm > 0, rows / norm.clamp_min(torch.finfo(rows.dtype).tiny), fallback)


def random_rows(m: int, d: int, generator: torch.Generator, like: Tensor | None = None) -> Tensor:
    """``m`` independent directions, uniform on the unit sphere of ``d`` dimensions; drawn on the CPU, the same on every device."""
    rows = unit(torch.randn(m, d, generator=generator, dtype=torch.float64))
    return rows.float() if like is None else rows.to(like)


def orthogonalise(V: Tensor, how: Orthogonalise, gain: Tensor | None = None) -> Tensor:
    """Push the rows of ``V`` ``[m, d]`` apart, each keeping its sign.

    Args:
        V: Unit rows.
        how: ``"qr"`` Gram–Schmidt, rows with the largest gain first (the first is privileged); ``"polar"`` the nearest orthonormal rows;
            ``"soft"`` ten sweeps of V ← normalise(V − PV), the only one for m > d.
        gain: Norm of each factor's gradient ``[m]``: rows give way to those with more. Row order, or equal weight, if left out.
    """
    if how == "qr":
        order = torch.arange(len(V)) if gain is None else gain.argsort(descending=True, stable=True)
        Q, R = torch.linalg.qr(V[order].T)
        sign = torch.where(R.diagonal() < 0, -1.0, 1.0).to(V)
        return (Q * sign).T[order.argsort()].contiguous()
    if how == "polar":
        left, _, right = torch.linalg.svd(V, full_matrices=False)
        return left @ right
    return _soft(V, gain)


def _soft(V: Tensor, gain: Tensor | None, sweeps: int = 10, temperature: float = 1.0) -> Tensor:
    """P = row-softmax(VVᵀ/T + log ‖g‖) with zero diagonal (SOGI, arXiv 2606.29604)."""
    if len(V) == 1:
        return V
    weight = (
        torch.zeros(len(V)).to(V)
        if gain is None
        else gain.clamp_min(torch.finfo(V.dtype).tiny).log()
    )
    own = torch.eye(len(V), dtype=torch.bool, device=V.device)
    for _ in range(sweeps):
        P = (V @ V.T / temperature + weight).masked_fill(own, -torch.inf).softmax(-1)
        V = unit(V - P @ V, fallback=V)
    return V


def complete(V: Tensor, m: int, generator: torch.Generator) -> Tensor:
    """The first ``m`` rows of ``V``, or ``V`` with random rows added, orthonormal to it as long as there is room for that."""
    if len(V) >= m:
        return V[:m]
    extra = random_rows(m - len(V), V.shape[1], generator, like=V)
    room = V.shape[1] - len(V)
    inside = extra[:room]
    for _ in range(
        2
    ):  # twice is enough: the first pass leaves rounding along V where little room is left
        inside = orthogonalise(inside - inside @ V.T @ V, "qr")
    return torch.cat([V, inside, extra[room:]])


def top_singular(
    matmat: Callable[[Tensor], Tensor],
    rmatmat: Callable[[Tensor], Tensor],
    start: Tensor,
    m: int,
    tol: float,
    max_iterations: int,
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Leading ``m`` singular triplets of a matrix J known by its products, by block Krylov iteration with Rayleigh–Ritz.

    Args:
        matmat: ``[k, d_source] → [k, d_target]``, rows v ↦ Jv.
        rmatmat: ``[k, d_target] → [k, d_source]``, rows u ↦ Jᵀu.
        start: Block of orthonormal rows ``[b, d_source]``.
        m: How many triplets.
        tol: Stop when max over the m of ‖Jᵀu − σv‖ is below ``tol · σ₁``.
        max_iterations: Blocks to build at most, with m rows or more in all; each costs b products with J and b with Jᵀ.

    Returns:
        V ``[m, d_source]``, U ``[m, d_target]``, σ ``[m]`` descending, and the residual reached (relative to σ₁).
    """
    basis, images, pulls = start, matmat(start), None
    block = start
    for i in range(max_iterations):
        pull = rmatmat(images[-len(block) :])
        pulls = pull if pulls is None else torch.cat([pulls, pull])
        # Ritz triplets on the basis: its image is U S W in rows
        W, S, U = torch.linalg.svd(images, full_matrices=False)
        W, S, U = W[:, :m], S[:m], U[:m]
        V = W.T @ basis
        residual = (
            W.T @ pulls / S[:, None].clamp_min(torch.finfo(S.dtype).tiny) - S[:, None] * V
        ).norm(dim=-1)
        residual = (residual / S[0].clamp_min(torch.finfo(S.dtype).tiny)).max().item()
        room = basis.shape[1] - len(basis)
        if (residual < tol and len(basis) >= m) or room == 0 or i == max_iterations - 1:
            break
        block = pull
        for _ in range(2):  # twice is enough (Kahan)
            block = block - block @ basis.T @ basis
            block = orthogonalise(block, "qr")
        block = block[:room]
        basis = torch.cat([basis, block])
        images = torch.cat([images, matmat(block)])
    return V, U, S, residual


def singular_signs(V: Tensor, U: Tensor) -> tuple[Tensor, Tensor]:
    """Singular pairs (v, u) and (−v, −u) are one: take the one whose largest entry of v is positive."""
    at = V.abs().argmax(-1, keepdim=True)
    sign = V.gather(-1, at).sign()
    return V * sign, U * sign
