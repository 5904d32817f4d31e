"""SARA: scaling activations towards those of one prompt and away from those of another (Tlaie 2024; METHOD §7)."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from melbo.errors import MelboError
from melbo.maths.linalg import singular_signs
from melbo.models.edits import Change, InputEdit, Tokens
from melbo.models.language_model import LanguageModel


def summary(A: Tensor, k: int) -> Tensor:
    """Activations ``[T, d]`` as their k leading right singular vectors, each times its singular value, ``[k, d]``.

    An SVD leaves the sign of each vector open; here the entry that is largest in size is positive.
    """
    _, S, V = torch.linalg.svd(A.double(), full_matrices=False)
    V, _ = singular_signs(V, V)
    return S[:k, None] * V[:k]


def scales(A: Tensor, attract: Tensor, repel: Tensor, truncation: int | None = None) -> Tensor:
    """The s ``[d]`` of each channel, cos(Ã, Ã₊) − cos(Ã, Ã₋) of the columns of the summaries.

    Args:
        A: Activations of the running prompt ``[T, d]``.
        attract: Of the prompt to move towards ``[T₊, d]``.
        repel: Of the prompt to move away from ``[T₋, d]``.
        truncation: Singular directions to keep at most; k = min(T, T₊, T₋) of them if left out.

    Raises:
        MelboError: Widths that differ, or nothing kept.
    """
    if not A.shape[-1] == attract.shape[-1] == repel.shape[-1]:
        raise MelboError(
            f"got activations of widths {A.shape[-1]}, {attract.shape[-1]} and {repel.shape[-1]}: expected one width"
        )
    if truncation is not None and truncation < 1:
        raise MelboError(f"truncation is {truncation}: expected at least 1")
    k = min(len(A), len(attract), len(repel), truncation or len(A))
    own, plus, minus = (summary(x, k) for x in (A, attract, repel))
    return torch.cosine_similarity(own, plus, dim=0) - torch.cosine_similarity(own, minus, dim=0)


@dataclass(frozen=True)
class Sara(InputEdit):
    """Scale the input of a block channel by channel, A ← A · diag(1 + coefficient·s), s from `scales`.

    s is taken from the prompt when it is first read and kept for the reply to it, so that a reply is the same with a KV cache and without.

    Attributes:
        layer: Block whose input is scaled (``hidden_states`` index, negative from the end).
        attract: Unsteered activations there of the prompt to move towards ``[T₊, d]``; see `activations`.
        repel: Of the prompt to move away from ``[T₋, d]``.
        coefficient: 0 changes nothing, negative swaps the two; one for all rows of a batch, or one for each ``[rows]``.
        truncation: See `scales`.
    """

    layer: int
    attract: Tensor
    repel: Tensor
    coefficient: float | Tensor = 1.0
    truncation: int | None = None
    stateful: ClassVar[bool] = True

    def check(self, lm: LanguageModel) -> None:
        """See `Edit.check`; also the width of the activations."""
        super().check(lm)
        for name, rows in (("attract", self.attract), ("repel", self.repel)):
            if rows.ndim != 2 or rows.shape[1] != lm.width or not len(rows):
                raise MelboError(
                    f"got activations to {name} of shape {tuple(rows.shape)}, expected [tokens, {lm.width}]"
                )

    def begin(self) -> Change:
        """Remembers the prompts of the rows, and their factors."""
        return _Running(self)

    def rows(self, which: Tensor) -> "Sara":
        """See `Edit.rows`."""
        return (
            replace(self, coefficient=self.coefficient[which])
            if isinstance(self.coefficient, Tensor)
            else self
        )


class _Running:
    """The factors of the rows under way."""

    def __init__(self, edit: Sara) -> None:
        self.edit = edit
        self.prompts: list[Tensor] = []  # activations of each row's prompt, [T, d]
        self.factors = torch.zeros(0)  # [rows, d]

    def __call__(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        if not tokens.generated:
            real = (tokens.index >= 0).to(hidden.device).expand(hidden.shape[:2])
            rows = [row[at] for row, at in zip(hidden, real, strict=True)]
            if not self._continues(rows):
                self.prompts = [row.detach().clone() for row in rows]
                self.factors = self._factors()
        if len(self.factors) != len(hidden):
            raise MelboError(
                f"got {len(hidden)} rows to continue, the prompts read were {len(self.factors)}: read the prompts again"
            )
        return hidden * self.factors[:, None]

    def _factors(self) -> Tensor:
        e = self.edit
        s = torch.stack(
            [
                scales(p, e.attract.to(p.device), e.repel.to(p.device), e.truncation)
                for p in self.prompts
            ]
        )
        coefficient = (
            e.coefficient.to(s)[:, None] if isinstance(e.coefficient, Tensor) else e.coefficient
        )
        return (1 + coefficient * s).to(self.prompts[0].dtype)

    def _continues(self, rows: list[Tensor]) -> bool:
        """Whether these are the prompts that were read, with what has been generated since, as they come without a cache."""
        pairs = list(zip(self.prompts, rows, strict=False))
        return len(self.prompts) == len(rows) and all(
            len(new) > len(old) and (new[: len(old)] - old).norm() <= 1e-3 * old.norm()
            for old, new in pairs
        )
