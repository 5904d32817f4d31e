"""Linear algebra of directions: unit rows, orthogonalisation that keeps signs, singular pairs."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from melbo.errors import MelboError

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
    # rows that are not finite stay so, for others to refuse
    return torch.where(norm == 0, fallback, rows / norm.clamp_min(_tiny(rows)))


def require_finite(rows: Tensor) -> Tensor:
    """Refuse derivatives at zero that are not finite, and hand back any others.

    Raises:
        MelboError: A value is not finite.
    """
    if not torch.isfinite(rows).all():
        raise MelboError(
            "the derivative at zero is not finite: load the model in float32 or bfloat16, "
            "or look at other layers"
        )
    return rows


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

    The method is block Krylov iteration with Rayleigh–Ritz. A block of b rows finds a singular
    value of any multiplicity b times at most, so b has to be m or more.

    Args:
        matmat: ``[k, d_source] → [k, d_target]``, rows v ↦ Jv.
        rmatmat: ``[k, d_target] → [k, d_source]``, rows u ↦ Jᵀu.
        start: Block of orthonormal rows ``[b, d_source]``, at random, b ≥ m.
        m: Number of triplets.
        tol: Stop when the ‖Jᵀu − σv‖ of each of the m triplets is below ``tol · σ``, or is
            rounding.
        max_iterations: Largest number of blocks. A block costs b products with J and b with Jᵀ.

    Returns:
        V ``[m, d_source]``, U ``[m, d_target]``, σ ``[m]`` descending, and the residual reached
        (relative to σ, less rounding).

    Raises:
        MelboError: The block has fewer than m rows, or a product is not finite.
    """
    _check_block(start, m)
    basis, images, pulls = start, require_finite(matmat(start)), None
    block = start
    for i in range(max_iterations):
        pull = rmatmat(images[-len(block) :])
        pulls = pull if pulls is None else torch.cat([pulls, pull])
        # Ritz triplets on the basis: its image is U S W in rows
        W, S, U = torch.linalg.svd(images, full_matrices=False)
        W, S, U = W[:, :m], S[:m], U[:m]
        V = W.T @ basis
        away = W.T @ pulls / S[:, None].clamp_min(_tiny(S)) - S[:, None] * V
        residual = _relative(away.norm(dim=-1), S)
        if residual < tol or len(basis) == basis.shape[1] or i == max_iterations - 1:
            break
        block = _new_rows(pull, basis)
        basis = torch.cat([basis, block])
        images = torch.cat([images, matmat(block)])
    return V, U, S, residual


def top_eigen(
    matmat: Callable[[Tensor], Tensor], start: Tensor, m: int, tol: float, max_iterations: int
) -> tuple[Tensor, Tensor, float]:
    """Leading eigenpairs of a symmetric matrix H without negative eigenvalues.

    See `top_singular`; a block costs b products with H.

    Args:
        matmat: ``[k, d] → [k, d]``, rows v ↦ Hv.
        start: Block of orthonormal rows ``[b, d]``, at random, b ≥ m.
        m: Number of pairs.
        tol: Stop when the ‖Hv − λv‖ of each of the m pairs is below ``tol · λ``, or is rounding.
        max_iterations: Largest number of blocks.

    Returns:
        V ``[m, d]``, λ ``[m]`` descending, and the residual reached (relative to λ, less rounding).

    Raises:
        MelboError: The block has fewer than m rows, or a product is not finite.
    """
    _check_block(start, m)
    basis, images = start, require_finite(matmat(start))
    block = start
    for i in range(max_iterations):
        inside = images @ basis.T
        values, W = torch.linalg.eigh((inside + inside.T) / 2)
        values, W = values.flip(0)[:m], W.flip(1)[:, :m]
        V = W.T @ basis
        away = W.T @ images - values[:, None] * V
        residual = _relative(away.norm(dim=-1), values.clamp_min(0))
        if residual < tol or len(basis) == basis.shape[1] or i == max_iterations - 1:
            break
        block = _new_rows(images[-len(block) :], basis)
        basis = torch.cat([basis, block])
        images = torch.cat([images, matmat(block)])
    return V, values, residual


def _check_block(start: Tensor, m: int) -> None:
    """Refuse a block of fewer than ``m`` rows.

    Raises:
        MelboError: It has fewer.
    """
    if len(start) < m:
        raise MelboError(
            f"got a block of {len(start)} rows for {m} singular values, expected {m} or more: "
            "a value that repeats more often would be missed"
        )


def _relative(residuals: Tensor, values: Tensor) -> float:
    """Largest residual over its value, less rounding; values that are rounding do not count."""
    rounding = 10 * torch.finfo(values.dtype).eps * values[0]
    beyond = (residuals - rounding).clamp_min(0) / values.clamp_min(_tiny(values))
    return torch.where(values > rounding, beyond, 0.0).max().item()


def _new_rows(rows: Tensor, basis: Tensor) -> Tensor:
    """Orthonormal rows for a basis that grows, along ``rows`` where these are new to it.

    Rows that lie in the basis to rounding give way to random ones. There are as many as rows, or
    as there is room for.
    """
    generator = torch.Generator().manual_seed(len(basis))
    exact = torch.finfo(rows.dtype).eps
    rows = rows[: basis.shape[1] - len(basis)]
    # once leaves rounding along the basis; twice is enough (Kahan), but for random rows
    for _ in range(6):
        rows = unit(rows)
        rows = rows - rows @ basis.T @ basis
        old = rows.norm(dim=-1) < 10 * exact
        if old.any():
            rows[old] = random_rows(int(old.sum()), rows.shape[1], generator, like=rows)
            continue
        rows = orthogonalise(rows, "qr")
        if (rows @ basis.T).norm(dim=-1).max() < 10 * exact:
            break
    return rows


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
