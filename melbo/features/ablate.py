"""Ablation: directions taken out of every matrix that writes to the residual stream.

See docs/method.md §5, and Arditi et al. 2024.
"""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor

from melbo.errors import MelboError
from melbo.models.language_model import LanguageModel
from melbo.models.output_matrices import OutputMatrix, embeddings, output_matrices


@contextmanager
def ablate(
    lm: LanguageModel, directions: Tensor, embedding: bool = False
) -> Generator[None, None, None]:
    """Inside the ``with`` block no block of the model writes along ``directions``.

    W ← W − QᵀQ W, with Q an orthonormal basis of the directions, for every output matrix and its
    bias. Where a norm with gain g follows the matrix, Q spans g ⊙ v for each direction v, so that
    what reaches the stream is free of v. The original weights are put back bit by bit. All is
    computed in float64 and rounded once to the weights' own precision: in half precision v̂ᵀW is
    zero only up to that rounding (2⁻⁸ of each weight in bfloat16).

    Args:
        lm: The model.
        directions: The directions ``[k, d]`` (or ``[d]``), of any norm.
        embedding: Whether to take them out of the embeddings of tokens and positions as well; tied
            embeddings are the output head too.

    Raises:
        MelboError: The directions have another width, a row that is zero or not finite, or are as
            many as dimensions; or the output matrices are not found (see
            `melbo.models.output_matrices.output_matrices`).
    """
    if directions.ndim == 1:
        directions = directions[None]
    if (
        directions.ndim != 2
        or directions.shape[1] != lm.width
        or not 0 < len(directions) < lm.width
    ):
        raise MelboError(
            f"got directions of shape {tuple(directions.shape)}, "
            f"expected [k, {lm.width}] with k below {lm.width}"
        )
    if not torch.isfinite(directions).all() or not (directions.norm(dim=-1) > 0).all():
        raise MelboError("directions to ablate hold a row that is zero or not finite: leave it out")
    chosen = output_matrices(lm) + (embeddings(lm) if embedding else [])
    # keyed by identity, so that tied weights are kept and changed once
    tensors = {id(t): t for w in chosen for t in (w.weight, w.bias) if t is not None}
    kept = {key: t.detach().clone() for key, t in tensors.items()}
    try:
        with torch.no_grad():
            for w in {id(w.weight): w for w in chosen}.values():
                _take_out(w, directions)
        yield
    finally:
        with torch.no_grad():
            for key, t in tensors.items():
                t.copy_(kept[key])


def _take_out(matrix: OutputMatrix, directions: Tensor) -> None:
    rows = directions.double().cpu()
    if matrix.gain is not None:
        rows = rows * matrix.gain.cpu()
    basis = _basis(rows).to(matrix.weight.device)  # [r, d]
    for tensor, axis in ((matrix.weight, matrix.axis), (matrix.bias, -1)):
        if tensor is not None:
            along = tensor.detach().double().movedim(axis, -1)  # [..., d]
            tensor.copy_((along - along @ basis.T @ basis).movedim(-1, axis))


def _basis(rows: Tensor) -> Tensor:
    """Orthonormal rows that span ``rows``, which may depend on each other."""
    _, S, W = torch.linalg.svd(rows / rows.norm(dim=-1, keepdim=True), full_matrices=False)
    basis: Tensor = W[(S / S[0]) > 1e-6]
    return basis
