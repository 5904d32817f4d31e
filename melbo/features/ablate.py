"""Ablation: directions taken out of every matrix that writes to the residual stream.

See docs/method.md §5, and Arditi et al. 2024.
"""

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from melbo.errors import MelboError, require
from melbo.models.language_model import LanguageModel
from melbo.models.weights.block_at_work import few_tokens
from melbo.models.weights.embedding_matrices import embeddings
from melbo.models.weights.output_matrices import Look, OutputMatrix, added_again, look
from melbo.models.weights.storage import Change, changed, require_plain

# share along the directions that may be left, for rounding of the weights to 8 bits, or to 24
_LEFT, _LEFT_EXACT = 0.03, 1e-3


@contextmanager
def ablate(
    lm: LanguageModel, directions: Tensor, embedding: bool = False
) -> Generator[None, None, None]:
    """Inside the ``with`` block no block of the model writes along ``directions``.

    W ← W − QᵀQ W, with Q an orthonormal basis of the directions, for every output matrix and its
    bias. Where a norm with gain g follows the matrix, Q spans g ⊙ v for each direction v, so that
    what reaches the stream is free of v. The original weights are put back bit by bit. All is
    computed in float64 and rounded once to the weights' own precision: in half precision v̂ᵀW is
    zero only up to that rounding (2⁻⁸ of each weight in bfloat16). On a few tokens it is verified
    that blocks no longer write along the directions, and of experts on as many random ones as
    should reach them all. Offloaded weights are edited as they are fetched.

    Args:
        lm: The model.
        directions: The directions ``[k, d]`` (or ``[d]``), of any norm.
        embedding: Whether to take them out of the embeddings of tokens and positions as well; tied
            embeddings are the output head too. Refused where pictures or sounds are read as well,
            which go past the embeddings.

    Raises:
        MelboError: The directions have another width, a row that is zero or not finite, or are as
            many as dimensions; the output matrices are not found (see
            `melbo.models.weights.output_matrices`) or are quantised; or blocks still write along
            the directions afterwards.
    """
    require(Tensor, "pass rows of a set of features, features.V[[3, 7]]", directions=directions)
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
    before = look(lm)
    chosen = before.matrices + (embeddings(lm) if embedding else [])
    entering = _entering(lm) if embedding else None
    with changed(lm.model, [change for w in chosen for change in _changes(w, directions)]):
        _verify(lm, before, directions)
        if entering is not None:
            _verify_embeddings(lm, entering, directions)
        yield


def _changes(matrix: OutputMatrix, directions: Tensor) -> list[Change]:
    """Changes of a matrix and its bias.

    Raises:
        MelboError: The matrix is quantised.
    """
    rows = directions.double().cpu()
    if matrix.gain is not None:
        rows = rows * matrix.gain.cpu()
    if matrix.centred:
        rows = rows - rows.mean(-1, keepdim=True)
    basis = _basis(rows)  # [r, d]
    require_plain(matrix.module, matrix.weight, matrix.name)
    found = [Change(matrix.name, partial(_without, basis, matrix.axis))]
    if matrix.bias is not None:
        require_plain(matrix.module, matrix.bias, matrix.bias_name)
        found.append(Change(matrix.bias_name, partial(_without, basis, -1)))
    return found


def _without(basis: Tensor, axis: int, tensor: Tensor) -> Tensor:
    """The tensor without its part in the span of ``basis`` along an axis."""
    basis = basis.to(tensor.device)
    along = tensor.double().movedim(axis, -1)  # [..., d]
    return (along - along @ basis.T @ basis).movedim(-1, axis)


def _basis(rows: Tensor) -> Tensor:
    """Orthonormal rows that span ``rows``, which may depend on each other."""
    norms = rows.norm(dim=-1, keepdim=True)
    _, S, W = torch.linalg.svd(rows / norms.clamp_min(1e-300), full_matrices=False)
    basis: Tensor = W[S / S[0].clamp_min(1e-300) > 1e-6]
    return basis


def _verify(lm: LanguageModel, before: Look, directions: Tensor) -> None:
    """Refuse weights with which blocks still write along the directions.

    Raises:
        MelboError: They do; names the block.
    """
    exact = all(w.weight.dtype in (torch.float32, torch.float64) for w in before.matrices)
    most = _LEFT_EXACT if exact else _LEFT
    for call, was, now in zip(before.calls, before.added, added_again(lm, before), strict=True):
        _require_gone(was, now, directions, f"block {call.index} of {lm.name} still writes", most)


def _verify_embeddings(lm: LanguageModel, before: Tensor, directions: Tensor) -> None:
    """Refuse embeddings that still hold the directions.

    Raises:
        MelboError: They do.
    """
    says = f"what enters the first block of {lm.name} is still"
    _require_gone(before, _entering(lm), directions, says, _LEFT)


def _entering(lm: LanguageModel) -> Tensor:
    """Stream that enters the first block on a few tokens, ``[T, d]``."""
    return lm.capture(*few_tokens(), 0, 1).hidden[0].double()


def _require_gone(was: Tensor, now: Tensor, directions: Tensor, says: str, most: float) -> None:
    basis = _basis(directions.double().cpu())
    was, now = was.cpu(), now.cpu()
    along, left = ((x @ basis.T).norm().item() for x in (was, now))
    # what is rounding beside the whole counts as nothing
    size = (len(basis) / was.shape[-1]) ** 0.5 * was.norm().item()
    if not left <= most * (along + size):
        raise MelboError(
            f"{says} along the directions after the edit ({left:.2g}, before it {along:.2g}): "
            "the weights are put back as they were; open an issue with the architecture's name"
        )
