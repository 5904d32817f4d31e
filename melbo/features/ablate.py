"""Ablation: directions taken out of every matrix that writes to the residual stream (METHOD §5; Arditi et al. 2024)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from melbo.errors import MelboError
from melbo.models.language_model import LanguageModel
from melbo.models.output_matrices import OutputMatrix, embeddings, output_matrices


@contextmanager
def ablate(lm: LanguageModel, directions: Tensor, embedding: bool = False) -> Iterator[None]:
    """Inside the ``with`` block no block of the model writes along ``directions``.

    W ← W − QᵀQ W with Q an orthonormal basis of the directions, for every writing matrix, biases too. Where a norm with gain g follows the
    matrix, the basis is that of g ⊙ v, so that what reaches the stream is free of v. The originals are kept and put back bit by bit. Computed in
    float64 and rounded once to the weights' own precision: in half precision v̂ᵀW is zero to its rounding only (2⁻⁸ of each weight in bfloat16).

    Args:
        lm: The model.
        directions: ``[k, d]`` (or ``[d]``), of any norm.
        embedding: Take them out of the embeddings of tokens and positions as well; with tied embeddings the output matrix is the same one.

    Raises:
        MelboError: A width that does not fit, values that are not finite or rows that are zero, as many directions as dimensions, or a
            model whose writing matrices are not found (see `melbo.writers.writers`).
    """
    directions = torch.atleast_2d(directions)
    if (
        directions.ndim != 2
        or directions.shape[1] != lm.width
        or not 0 < len(directions) < lm.width
    ):
        raise MelboError(
            f"got directions of shape {tuple(directions.shape)}, expected [k, {lm.width}] with k below {lm.width}"
        )
    if not torch.isfinite(directions).all() or not (directions.norm(dim=-1) > 0).all():
        raise MelboError("directions to ablate hold a row that is zero or not finite: leave it out")
    chosen = output_matrices(lm) + (embeddings(lm) if embedding else [])
    tensors = {
        id(t): t for w in chosen for t in (w.weight, w.bias) if t is not None
    }  # tied ones once
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


def _take_out(w: OutputMatrix, directions: Tensor) -> None:
    rows = directions.double().cpu()
    if w.gain is not None:
        rows = rows * w.gain.cpu()
    basis = _basis(rows).to(w.weight.device)  # [r, d]
    for tensor, axis in ((w.weight, w.axis), (w.bias, -1)):
        if tensor is not None:
            along = tensor.detach().double().movedim(axis, -1)  # [..., d]
            tensor.copy_((along - along @ basis.T @ basis).movedim(-1, axis))


def _basis(rows: Tensor) -> Tensor:
    """Orthonormal rows that span ``rows``, which may depend on each other."""
    _, S, W = torch.linalg.svd(rows / rows.norm(dim=-1, keepdim=True), full_matrices=False)
    return W[(S / S[0]) > 1e-6]
