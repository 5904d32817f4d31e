"""Edits, as values: what is done to a model for as long as a ``with`` block lasts."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol, Self

import torch
from torch import Tensor, nn

from melbo.errors import MelboError
from melbo.models.language_model import LanguageModel
from melbo.models.placement import steered_tokens
from melbo.models.prompts import token_index

Where = Literal["all", "prompt", "generated"]


class Removable(Protocol):
    """What can be taken out of the model again, a hook for instance."""

    def remove(self) -> None:
        """Take it out."""


class Tokens:
    """Pre-hook on the trunk of the model: knows which tokens the forward pass under way is about.

    Attributes:
        index: Place of each token among the real ones of its row, −1 on padding: ``[rows or 1, T]``.
        generated: Whether the pass stands on a KV cache that holds more than the first ``prefix`` tokens.
    """

    def __init__(self, prefix: int = 0) -> None:
        self.prefix = prefix
        self.index = torch.zeros(1, 1)
        self.generated = False

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Take note of what the trunk is called with."""
        ids = kwargs.get("input_ids")
        ids = kwargs.get("inputs_embeds") if ids is None else ids
        ids = args[0] if ids is None else ids
        length = ids.shape[1]
        cache = kwargs.get("past_key_values")
        past = int(cache.get_seq_length()) if cache is not None else 0
        mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
        if isinstance(mask, Tensor) and mask.ndim == 2:
            self.index = token_index(mask)[:, past : past + length]
        elif (
            mask is not None and positions is not None
        ):  # a mask made ready beforehand, as with static caches
            self.index = positions.reshape(-1, *positions.shape[-2:])[0]
        else:
            self.index = torch.arange(past, past + length, device=ids.device)[None]
        self.generated = past > self.prefix


Change = Callable[
    [Tensor, Tokens], Tensor | None
]  # of the input of a block, [rows, T, d]; None leaves it as it is


class Edit(ABC):
    """Something done to the model for as long as a ``with`` block lasts.

    Attributes:
        layer: The first block that is touched (``hidden_states`` index, negative from the end).
        remembers: Whether what it does depends on passes before, so that rows cannot leave a batch under way.
        splits: Whether it does the same to a prompt that is read in two passes.
    """

    layer: int
    stateful: ClassVar[bool] = False
    prefix_safe: ClassVar[bool] = False

    def check(self, lm: LanguageModel) -> None:
        """Refuse what cannot work on this model.

        Raises:
            MelboError: A layer that no block reads.
        """
        if lm.layer(self.layer) == lm.depth:
            raise MelboError(
                f"cannot steer at layer {self.layer}: {lm.name} has blocks 0 to {lm.depth - 1}"
            )

    @abstractmethod
    def attach(self, lm: LanguageModel, tokens: Tokens) -> list[Removable]:
        """Hooks that do it, until they are removed; ``tokens`` tells them which tokens a pass is about."""

    @abstractmethod
    def rows(self, which: Tensor) -> Self:
        """The same for some rows of a batch, in another order perhaps; itself where it treats all rows alike."""


class InputEdit(Edit):
    """Something done to the input of one block, ``layer``."""

    @abstractmethod
    def begin(self) -> Change:
        """What to do with the hidden states for as long as a ``with`` block lasts."""

    def attach(self, lm: LanguageModel, tokens: Tokens) -> list[Removable]:
        """See `Edit.attach`."""
        change = self.begin()

        def hook(block: nn.Module, args: tuple, kwargs: dict[str, Any]):
            new = change(args[0] if args else kwargs["hidden_states"], tokens)
            if new is None:
                return None
            return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

        return [lm.blocks[lm.layer(self.layer)].register_forward_pre_hook(hook, with_kwargs=True)]


@dataclass(frozen=True)
class EditSequence(Edit):
    """Edits one after the other, as one."""

    edits: tuple[Edit, ...]

    @property
    def layer(self) -> int:  # type: ignore[override]  # derived, where other edits are given it
        """The first block that is touched."""
        return min((e.layer for e in self.edits), default=0)

    @property
    def stateful(self) -> bool:  # type: ignore[override]  # likewise
        """Whether any of them does."""
        return any(e.stateful for e in self.edits)

    @property
    def prefix_safe(self) -> bool:  # type: ignore[override]  # likewise
        """Whether all of them do."""
        return all(e.prefix_safe for e in self.edits)

    def check(self, lm: LanguageModel) -> None:
        """See `Edit.check`."""
        for e in self.edits:
            e.check(lm)

    def attach(self, lm: LanguageModel, tokens: Tokens) -> list[Removable]:
        """See `Edit.attach`."""
        return [handle for e in self.edits for handle in e.attach(lm, tokens)]

    def rows(self, which: Tensor) -> "EditSequence":
        """See `Edit.rows`."""
        edits = tuple(e.rows(which) for e in self.edits)
        return (
            self
            if all(new is old for new, old in zip(edits, self.edits, strict=True))
            else EditSequence(edits)
        )


@dataclass(frozen=True)
class Add(InputEdit):
    """Add vectors to the input of a block: h_layer ← h_layer + v.

    Attributes:
        layer: Block whose input is changed (``hidden_states`` index, negative from the end).
        vectors: ``[d]``, the same for every row of a batch, or ``[rows, d]``, one for each.
        where: At which tokens. With a KV cache, what runs on top of the prompt's is generated, what fills that is prompt; padding never.
        skip_first: Leave each row's first token, the attention sink, as it is.
        last: Of a prompt, change only this many tokens at its end.
    """

    layer: int
    vectors: Tensor
    where: Where = "all"
    skip_first: bool = False
    last: int | None = None

    @property
    def prefix_safe(self) -> bool:  # type: ignore[override]  # depends on which tokens are steered
        """Whether no token is counted from the end of the prompt."""
        return self.last is None

    def check(self, lm: LanguageModel) -> None:
        """See `Edit.check`; also the vectors' width, and ``where``."""
        super().check(lm)
        if self.vectors.shape[-1] != lm.width or self.vectors.ndim not in (1, 2):
            raise MelboError(
                f"got vectors of shape {tuple(self.vectors.shape)}, expected [{lm.width}] or [rows, {lm.width}]"
            )
        if self.where not in ("all", "prompt", "generated"):
            raise MelboError(f"where is {self.where!r}: expected 'all', 'prompt' or 'generated'")

    def begin(self) -> Change:
        """Nothing is remembered from pass to pass."""
        return self._change

    def rows(self, which: Tensor) -> "Add":
        """See `Edit.rows`."""
        return self if self.vectors.ndim == 1 else replace(self, vectors=self.vectors[which])

    def _change(self, hidden: Tensor, tokens: Tokens) -> Tensor | None:
        if self.where == ("prompt" if tokens.generated else "generated"):
            return None
        vectors = self.vectors.to(hidden.device, torch.promote_types(hidden.dtype, torch.float32))
        if vectors.ndim == 2 and len(vectors) != hidden.shape[0]:
            raise MelboError(
                f"got {len(vectors)} vectors for a batch of {hidden.shape[0]} rows: expected one for each"
            )
        last = None if tokens.generated else self.last
        at = steered_tokens(tokens.index, self.skip_first, last)  # [rows or 1, T]
        steered = at.to(hidden.device, vectors.dtype)[:, :, None]
        return (hidden + steered * (vectors[:, None] if vectors.ndim == 2 else vectors)).to(
            hidden.dtype
        )


@contextmanager
def edit(lm: LanguageModel, *edits: Edit, prefix: int = 0) -> Iterator[None]:
    """Apply edits inside the ``with`` block, with a KV cache or without; undone exactly on leaving.

    Without a cache every token of a pass counts as prompt, so ``where`` other than ``"all"`` needs one.

    Args:
        lm: The model.
        edits: The edits.
        prefix: Tokens of the prompt that are read beforehand; what runs on a cache of as many is
            prompt too.

    Raises:
        MelboError: A layer that no block reads, a width that does not fit, or (at the forward pass) another number of rows than vectors.
    """
    for e in edits:
        e.check(lm)
    tokens = Tokens(prefix)
    trunk = getattr(lm.model, "base_model", lm.model)
    handles: list[Removable] = [trunk.register_forward_pre_hook(tokens, with_kwargs=True)]
    try:
        for e in edits:
            handles += e.attach(lm, tokens)
        yield
    finally:
        for handle in reversed(handles):
            handle.remove()
