"""Linear algebra of directions: unit rows, orthogonalisation that keeps signs, singular pairs."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Orthogonalise = Literal["qr", "polar", "soft"]


def unit(rows: Tensor, fallback: Tensor | None = None) -> Tensor:
    """Rows scaled to norm 1.

    Args:
        rows: Rows ``[m, d]``.
        fallback: Rows ``[m, d]`` that replace rows of norm 0; if left out, the direction with all
            entries equal replaces them.
    """
    norm = rows.norm(dim=-1, keepdim=True)
    if fallback is None:
        fallback = torch.full_like(rows, rows.shape[-1] ** -0.5)
    return torch.where(norm > 0, rows / norm.clamp_min(_tiny(rows)), fallback)


def random_rows(m: int, d: int, generator: torch.Generator, like: Tensor | None = None) -> Tensor:
    """Independent directions, uniform on the unit sphere, ``[m, d]``.

    They are drawn on the CPU, so that they are the same on every device.

    Args:
        m: Number of directions.
        d: Their width.
        generator: Source of randomness, on the CPU.
        like: Tensor whose type and device the rows get; float32 on the CPU if left out.
    """
    rows = unit(torch.randn(m, d, generator=generator, dtype=torch.float64))
    return rows.float() if like is None else rows.to(like)


def orthogonalise(V: Tensor, how: Orthogonalise, gain: Tensor | None = None) -> Tensor:
    """Push rows apart, each keeping its sign (docs/method.md §3).

    Args:
        V: Unit rows ``[m, d]``.
        how: ``"qr"`` is Gram–Schmidt, rows with the largest gain first (the first row does not
            move); ``"polar"`` takes the nearest orthonormal rows; ``"soft"`` does ten sweeps of
            V ← normalise(V − PV) and is the only one for m > d.
        gain: Norm of each factor's gradient ``[m]``: rows give way to rows with more. If left out,
            row order decides, or all weigh the same.
    """
    if how == "qr":
        order = torch.arange(len(V)) if gain is None else gain.argsort(descending=True, stable=True)
        Q, R = torch.linalg.qr(V[order].T)
        sign = torch.where(R.diagonal() < 0, -1.0, 1.0).to(V)
        signed: Tensor = Q * sign
        return signed.T[order.argsort()].contiguous()
    if how == "polar":
        left, _, right = torch.linalg.svd(V, full_matrices=False)
        nearest: Tensor = left @ right
        return nearest
    return _soft(V, gain)


def _soft(V: Tensor, gain: Tensor | None, sweeps: int = 10, temperature: float = 1.0) -> Tensor:
    """Soft orthogonalisation: V ← normalise(V − PV), ``sweeps`` times.

    P = row-softmax(VVᵀ/T + log ‖g‖) with zero diagonal (SOGI, arXiv 2606.29604).
    """
    if len(V) == 1:
        return V
    weight = torch.zeros(len(V)).to(V) if gain is None else gain.clamp_min(_tiny(V)).log()
    own = torch.eye(len(V), dtype=torch.bool, device=V.device)
    for _ in range(sweeps):
        P = (V @ V.T / temperature + weight).masked_fill(own, -torch.inf).softmax(-1)
        V = unit(V - P @ V, fallback=V)
    return V


def complete(V: Tensor, m: int, generator: torch.Generator) -> Tensor:
    """Rows cut to ``m``, or extended to ``m`` with random rows.

    The random rows are orthonormal to the given ones and to each other as long as there is room.

    Args:
        V: Orthonormal rows ``[k, d]``.
        m: Number of rows wanted.
        generator: Source of randomness.
    """
    if len(V) >= m:
        return V[:m]
    extra = random_rows(m - len(V), V.shape[1], generator, like=V)
    room = V.shape[1] - len(V)
    inside = extra[:room]
    # once leaves rounding along V where there is little room; twice is enough
    for _ in range(2):
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
    """Leading singular triplets of a matrix J known by its products.

    The method is block Krylov iteration with Rayleigh–Ritz.

    Args:
        matmat: ``[k, d_source] → [k, d_target]``, rows v ↦ Jv.
        rmatmat: ``[k, d_target] → [k, d_source]``, rows u ↦ Jᵀu.
        start: Block of orthonormal rows ``[b, d_source]``.
        m: Number of triplets.
        tol: Stop when the largest ‖Jᵀu − σv‖ of the m triplets is below ``tol · σ₁``.
        max_iterations: Largest number of blocks, which have to hold m rows or more in all. A block
            costs b products with J and b with Jᵀ.

    Returns:
        V ``[m, d_source]``, U ``[m, d_target]``, σ ``[m]`` descending, and the residual reached
        (relative to σ₁).
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
        tiny = _tiny(S)
        residuals = (W.T @ pulls / S[:, None].clamp_min(tiny) - S[:, None] * V).norm(dim=-1)
        residual = (residuals / S[0].clamp_min(tiny)).max().item()
        room = basis.shape[1] - len(basis)
        if (residual < tol and len(basis) >= m) or room == 0 or i == max_iterations - 1:
            break
        block = pull
        # twice is enough (Kahan)
        for _ in range(2):
            block = block - block @ basis.T @ basis
            block = orthogonalise(block, "qr")
        block = block[:room]
        basis = torch.cat([basis, block])
        images = torch.cat([images, matmat(block)])
    return V, U, S, residual


def singular_signs(V: Tensor, U: Tensor) -> tuple[Tensor, Tensor]:
    """Singular pairs with their signs chosen: the largest entry of each v is positive.

    (v, u) and (−v, −u) are the same pair.

    Args:
        V: Right singular vectors, rows ``[m, d_source]``.
        U: Left singular vectors, rows ``[m, d_target]``.
    """
    at = V.abs().argmax(-1, keepdim=True)
    sign = V.gather(-1, at).sign()
    return V * sign, U * sign


def _tiny(rows: Tensor) -> float:
    """Smallest positive normal number of the tensor's type."""
    return torch.finfo(rows.dtype).tiny
