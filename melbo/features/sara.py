"""SARA: scaling activations towards one prompt's, away from another's (docs/method.md §7)."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from melbo.errors import MelboError
from melbo.maths.linalg import singular_signs
from melbo.models.edits import Change, InputEdit, Tokens
from melbo.models.language_model import LanguageModel


def summary(A: Tensor, k: int) -> Tensor:
    """Leading right singular vectors of activations, each times its singular value, ``[k, d]``.

    An SVD leaves the sign of each vector open; here the entry that is largest in size is positive.

    Args:
        A: Activations ``[T, d]``.
        k: Number of singular vectors.
    """
    _, S, V = torch.linalg.svd(A.double(), full_matrices=False)
    V, _ = singular_signs(V, V)
    leading: Tensor = S[:k, None] * V[:k]
    return leading


def scales(A: Tensor, attract: Tensor, repel: Tensor, truncation: int | None = None) -> Tensor:
    """SARA's s ``[d]``: for each channel cos(Ã, Ã₊) − cos(Ã, Ã₋) of the columns of the summaries.

    Source: Tlaie (2024).

    Args:
        A: Activations of the running prompt ``[T, d]``.
        attract: Activations of the prompt to move towards ``[T₊, d]``.
        repel: Activations of the prompt to move away from ``[T₋, d]``.
        truncation: Number of singular vectors at most; if left out, min(T, T₊, T₋) are kept.

    Raises:
        MelboError: The widths differ, or ``truncation`` is less than 1.
    """
    if not A.shape[-1] == attract.shape[-1] == repel.shape[-1]:
        raise MelboError(
            f"got activations of widths {A.shape[-1]}, {attract.shape[-1]} and {repel.shape[-1]}: "
            "expected one width"
        )
    if truncation is not None and truncation < 1:
        raise MelboError(f"truncation is {truncation}: expected at least 1")
    k = min(len(A), len(attract), len(repel), truncation or len(A))
    own, plus, minus = (summary(x, k) for x in (A, attract, repel))
    return torch.cosine_similarity(own, plus, dim=0) - torch.cosine_similarity(own, minus, dim=0)


@dataclass(frozen=True)
class Sara(InputEdit):
    """SARA: A ← A · diag(1 + coefficient·s) at the input of a block, with s from `scales`.

    s is computed when a prompt is first read and kept for the reply to it, so that the reply is the
    same with a key-value cache and without. To derivatives s is a constant: a gradient through the
    edit is that of the scaling alone. Maps refuse derivatives where that makes a difference.

    Attributes:
        layer: Block whose input is scaled (``hidden_states`` index, negative from the end).
        attract: Unsteered activations there of the prompt to move towards ``[T₊, d]``
            (see `melbo.LanguageModel.activations`).
        repel: Unsteered activations there of the prompt to move away from ``[T₋, d]``.
        coefficient: Multiple of s: 0 changes nothing, a negative one swaps the prompts. One for all
            rows of a batch, or one for each ``[rows]``.
        truncation: See `scales`.
    """

    layer: int
    attract: Tensor
    repel: Tensor
    coefficient: float | Tensor = 1.0
    truncation: int | None = None
    stateful: ClassVar[bool] = True
    partly_constant: ClassVar[bool] = True

    def check(self, lm: LanguageModel) -> None:
        """See `Edit.check`; also checks the shape of the activations.

        Raises:
            MelboError: The activations are not ``[tokens, width]``; and as `Edit.check`.
        """
        super().check(lm)
        for name, rows in (("attract", self.attract), ("repel", self.repel)):
            if rows.ndim != 2 or rows.shape[1] != lm.width or not len(rows):
                raise MelboError(
                    f"got activations to {name} of shape {tuple(rows.shape)}, "
                    f"expected [tokens, {lm.width}]"
                )

    def begin(self) -> Change:
        """See `InputEdit.begin`; remembers each row's prompt and factors."""
        return _Running(self)

    def rows(self, which: Tensor) -> "Sara":
        """See `Edit.rows`."""
        if not isinstance(self.coefficient, Tensor):
            return self
        return replace(self, coefficient=self.coefficient[which])


class _Running:
    """Change that scales rows, with factors from the prompts that these rows began with."""

    def __init__(self, edit: Sara) -> None:
        self.edit = edit
        # activations of each row's prompt, [T, d]
        self.prompts: list[Tensor] = []
        # [rows, d]
        self.factors = torch.zeros(0)

    def __call__(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        read = tokens.read
        if read and tokens.start == 0:
            if not tokens.whole:
                raise MelboError(
                    f"SARA reads a prompt whole, got {read} of its {tokens.prompt} tokens: "
                    "leave prefill_chunk_size out"
                )
            real = (tokens.index >= 0).to(hidden.device).expand(hidden.shape[:2])[:, :read]
            rows = [row[at] for row, at in zip(hidden[:, :read], real, strict=True)]
            if not self._continues(rows):
                self.prompts = [row.detach().clone() for row in rows]
                self.factors = self._factors()
        elif tokens.prompt is None:
            tokens.split()  # refuses what may be another part of the prompt
        if len(self.factors) != len(hidden):
            raise MelboError(
                f"got {len(hidden)} rows to continue, the prompts read were {len(self.factors)}: "
                "read the prompts again"
            )
        return hidden * self.factors[:, None]

    def _factors(self) -> Tensor:
        edit, device = self.edit, self.prompts[0].device
        attract, repel = edit.attract.to(device), edit.repel.to(device)
        s = torch.stack([scales(p, attract, repel, edit.truncation) for p in self.prompts])
        coefficient = edit.coefficient
        if isinstance(coefficient, Tensor):
            coefficient = coefficient.to(s)[:, None]
        return (1 + coefficient * s).to(self.prompts[0].dtype)

    def _continues(self, rows: list[Tensor]) -> bool:
        """Tell whether rows are the known prompts with replies added, as without a cache."""
        pairs = list(zip(self.prompts, rows, strict=False))
        return len(self.prompts) == len(rows) and all(
            len(new) >= len(old) and bool((new[: len(old)] - old).norm() <= 1e-3 * old.norm())
            for old, new in pairs
        )
