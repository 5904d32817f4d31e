"""Passes in which a token is rescaled, or parts of the model are held as they were."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softmax
from torch.overrides import TorchFunctionMode

from melbo.bilinear.gated import gated_module
from melbo.models.edits import Change, InputEdit, Tokens
from melbo.models.language_model import LanguageModel


@dataclass(frozen=True)
class ScaleToken(InputEdit):
    """Multiply the stream that enters a block at one token.

    Attributes:
        layer: Block whose input is changed.
        place: Index of the token in its row.
        factors: Factor of each row ``[rows]``.
    """

    layer: int
    place: int
    factors: Tensor

    @property
    def prefix_safe(self) -> bool:
        """Tell that the token is counted from the first of its row."""
        return True

    def begin(self) -> Change:
        """See `InputEdit.begin`; there is no state."""
        return self._change

    def rows(self, which: Tensor) -> "ScaleToken":
        """See `Edit.rows`."""
        return replace(self, factors=self.factors[which])

    def _change(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        at = (tokens.index == self.place).to(hidden.device)
        return torch.where(at[..., None], self.factors.to(hidden)[:, None, None] * hidden, hidden)


class Patterns(TorchFunctionMode):
    """Attention patterns of a pass, block after block, kept or replaced.

    Args:
        given: Patterns in the place of the pass's own, one a block; None to leave them.

    Attributes:
        kept: Patterns of the pass, before they are replaced.
    """

    def __init__(self, given: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self.given = given
        self.kept: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function; see `torch.overrides.TorchFunctionMode`."""
        out = func(*args, **(kwargs or {}))
        if func is not softmax:
            return out
        self.kept.append(out)
        return out if self.given is None else self.given[len(self.kept) - 1]


@contextmanager
def without_epsilon(lm: LanguageModel) -> Generator[None, None, None]:
    """Inside the ``with`` block, norms divide by the root mean square itself.

    They then give the same for every multiple of what they read.
    """
    norms: list[Any] = [m for m in lm.model.modules() if hasattr(m, "variance_epsilon")]
    before = [norm.variance_epsilon for norm in norms]
    try:
        for norm in norms:
            # nothing beside the square of any stream but zero, which is left at zero
            norm.variance_epsilon = 1e-30
        yield
    finally:
        for norm, epsilon in zip(norms, before, strict=True):
            norm.variance_epsilon = epsilon


@contextmanager
def first_mlp_of(lm: LanguageModel, place: int, row: int) -> Generator[None, None, None]:
    """Inside the ``with`` block, the first MLP writes to a token what it writes in one row.

    Args:
        lm: The model.
        place: Index of the token.
        row: The row.
    """

    def hook(mlp: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        kept = out.clone()
        kept[:, place] = out[row, place]
        return kept

    handle = gated_module(lm, 0).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
