"""Edits, as values: things done to a model for as long as a ``with`` block lasts."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import torch
from torch import Tensor, nn

from melbo.errors import MelboError
from melbo.models.language_model import LanguageModel
from melbo.models.placement import steered_tokens
from melbo.models.prompts import token_index

Where = Literal["all", "prompt", "generated"]


class Removable(Protocol):
    """Something that can be taken out of the model again, a hook for instance."""

    def remove(self) -> None:
        """Take it out."""


class Tokens:
    """Pre-hook on the trunk of a model that knows which tokens a forward pass is about.

    Args:
        prefix: Number of tokens of the prompt that are read beforehand.

    Attributes:
        prefix: Number of tokens of the prompt that are read beforehand.
        index: Place of each token among the real ones of its row, −1 on padding
            ``[rows or 1, T]``.
        generated: Whether the tokens are generated ones: the pass stands on a KV cache that holds
            more than the prefix.
    """

    def __init__(self, prefix: int = 0) -> None:
        self.prefix = prefix
        self.index = torch.zeros(1, 1)
        self.generated = False

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take note of the trunk's arguments.

        Args:
            module: The trunk.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
        """
        ids = kwargs.get("input_ids")
        ids = kwargs.get("inputs_embeds") if ids is None else ids
        ids = args[0] if ids is None else ids
        length = ids.shape[1]
        cache = kwargs.get("past_key_values")
        past = int(cache.get_seq_length()) if cache is not None else 0
        mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
        if isinstance(mask, Tensor) and mask.ndim == 2:
            self.index = token_index(mask)[:, past : past + length]
        elif mask is not None and positions is not None:
            # the mask was made ready beforehand, as with static caches
            self.index = positions.reshape(-1, *positions.shape[-2:])[0]
        else:
            self.index = torch.arange(past, past + length, device=ids.device)[None]
        self.generated = past > self.prefix


# new input of a block, from its own [rows, T, d] and the tokens it is about; None leaves it alone
Change = Callable[[Tensor, Tokens], Tensor | None]


class Edit(ABC):
    """Something done to the model for as long as a ``with`` block lasts.

    Attributes:
        layer: First block that is touched (``hidden_states`` index, negative from the end).
    """

    if TYPE_CHECKING:
        # a subclass may hold the layer as a field or derive it; a property that were there when the
        # program runs would become the default of such a field

        @property
        @abstractmethod
        def layer(self) -> int:
            """First block that is touched."""

    @property
    def stateful(self) -> bool:
        """Tell whether the edit depends on earlier forward passes.

        Finished rows then stay in the batch.
        """
        return False

    @property
    def prefix_safe(self) -> bool:
        """Tell whether the edit does the same to a prompt that is read in two passes."""
        return False

    def check(self, lm: LanguageModel) -> None:
        """Refuse a model on which the edit cannot work.

        Raises:
            MelboError: No block reads the layer.
        """
        if lm.layer(self.layer) == lm.depth:
            raise MelboError(
                f"cannot steer at layer {self.layer}: {lm.name} has blocks 0 to {lm.depth - 1}"
            )

    @abstractmethod
    def attach(self, lm: LanguageModel, tokens: Tokens) -> list[Removable]:
        """Put the edit into the model.

        Args:
            lm: The model.
            tokens: Knows which tokens a forward pass is about.

        Returns:
            Handles that take it out again.
        """

    @abstractmethod
    def rows(self, which: Tensor) -> Self:
        """The same edit for some rows of a batch, in any order.

        An edit that treats all rows alike returns itself.
        """


class InputEdit(Edit):
    """Change of the input of one block, ``layer``."""

    @abstractmethod
    def begin(self) -> Change:
        """Make the change for one ``with`` block, with whatever state it keeps there."""

    def attach(self, lm: LanguageModel, tokens: Tokens) -> list[Removable]:
        """See `Edit.attach`."""
        change = self.begin()

        def hook(
            block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            new = change(args[0] if args else kwargs["hidden_states"], tokens)
            if new is None:
                return None
            return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

        return [lm.blocks[lm.layer(self.layer)].register_forward_pre_hook(hook, with_kwargs=True)]


@dataclass(frozen=True)
class EditSequence(Edit):
    """Edits one after the other, as one.

    Attributes:
        edits: The edits, in the order in which they are attached.
    """

    edits: tuple[Edit, ...]

    @property
    def layer(self) -> int:
        """First block that any of the edits touches; 0 without edits."""
        return min((e.layer for e in self.edits), default=0)

    @property
    def stateful(self) -> bool:
        """Tell whether any of the edits is stateful."""
        return any(e.stateful for e in self.edits)

    @property
    def prefix_safe(self) -> bool:
        """Tell whether all of the edits are prefix-safe."""
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
        same = all(new is old for new, old in zip(edits, self.edits, strict=True))
        return self if same else EditSequence(edits)


@dataclass(frozen=True)
class Add(InputEdit):
    """Add vectors to the input of a block: h_layer ← h_layer + v.

    Attributes:
        layer: Block whose input is changed (``hidden_states`` index, negative from the end).
        vectors: The vectors: ``[d]``, the same for every row of a batch, or ``[rows, d]``.
        where: Tokens that are changed, never padding. With a KV cache, what runs on top of the
            prompt's cache is generated, and what fills that cache is prompt.
        skip_first: Whether each row's first token, the attention sink, is left as it is.
        last: Number of tokens at the end of a prompt that are changed; None for all of them.
    """

    layer: int
    vectors: Tensor
    where: Where = "all"
    skip_first: bool = False
    last: int | None = None

    @property
    def prefix_safe(self) -> bool:
        """Tell whether no token is counted from the end of the prompt."""
        return self.last is None

    def check(self, lm: LanguageModel) -> None:
        """Refuse a model on which the edit cannot work, and settings that mean nothing.

        Raises:
            MelboError: No block reads the layer, the vectors are of another width, or ``where``
                is none of the three.
        """
        super().check(lm)
        if self.vectors.shape[-1] != lm.width or self.vectors.ndim not in (1, 2):
            raise MelboError(
                f"got vectors of shape {tuple(self.vectors.shape)}, "
                f"expected [{lm.width}] or [rows, {lm.width}]"
            )
        if self.where not in ("all", "prompt", "generated"):
            raise MelboError(f"where is {self.where!r}: expected 'all', 'prompt' or 'generated'")

    def begin(self) -> Change:
        """See `InputEdit.begin`; there is no state."""
        return self._change

    def rows(self, which: Tensor) -> "Add":
        """See `Edit.rows`."""
        return self if self.vectors.ndim == 1 else replace(self, vectors=self.vectors[which])

    def _change(self, hidden: Tensor, tokens: Tokens) -> Tensor | None:
        if self.where == ("prompt" if tokens.generated else "generated"):
            return None
        vectors = self.vectors.to(hidden.device, torch.promote_types(hidden.dtype, torch.float32))
        if vectors.ndim == 2:
            if len(vectors) != hidden.shape[0]:
                raise MelboError(
                    f"got {len(vectors)} vectors for a batch of {hidden.shape[0]} rows: "
                    "expected one for each"
                )
            vectors = vectors[:, None]
        last = None if tokens.generated else self.last
        at = steered_tokens(tokens.index, self.skip_first, last)  # [rows or 1, T]
        steered = at.to(hidden.device, vectors.dtype)[:, :, None]
        return (hidden + steered * vectors).to(hidden.dtype)


@contextmanager
def edit(lm: LanguageModel, *edits: Edit, prefix: int = 0) -> Generator[None, None, None]:
    """Apply edits inside the ``with`` block, with a KV cache or without; undone exactly on leaving.

    Without a cache every token of a pass counts as prompt, so ``where`` other than ``"all"`` needs
    one.

    Args:
        lm: The model.
        edits: The edits.
        prefix: Number of tokens of the prompt that are read beforehand; what runs on a cache of as
            many is prompt too.

    Raises:
        MelboError: An edit does not fit the model (see `Edit.check`), or, at the forward pass,
            there is another number of rows than vectors.
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
