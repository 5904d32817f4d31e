"""Edits, as values: things done to a model for as long as a ``with`` block lasts."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

import torch
from torch import Tensor, nn

from melbo.errors import MelboError
from melbo.models.language_model import LanguageModel
from melbo.models.placement import steered_tokens
from melbo.models.tokens import Tokens as Tokens

Where = Literal["all", "prompt", "generated"]


class Removable(Protocol):
    """Something that can be taken out of the model again, a hook for instance."""

    def remove(self) -> None:
        """Take it out."""


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


class InputHook:
    """Hook that changes the input of a block.

    Args:
        change: The change.
        tokens: Knows which tokens a forward pass is about.
        partly_constant: See `InputEdit`.
    """

    def __init__(self, change: Change, tokens: Tokens, partly_constant: bool) -> None:
        self._change, self._tokens = change, tokens
        self.partly_constant = partly_constant

    def __call__(
        self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """See `torch.nn.Module.register_forward_pre_hook`."""
        new = self._change(args[0] if args else kwargs["hidden_states"], self._tokens)
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})


class InputEdit(Edit):
    """Change of the input of one block, ``layer``.

    Attributes:
        partly_constant: Whether part of the change depends on the stream and is a constant to
            derivatives all the same, which are then not those of the steered model.
    """

    partly_constant: ClassVar[bool] = False

    @abstractmethod
    def begin(self) -> Change:
        """Make the change for one ``with`` block, with whatever state it keeps there."""

    def attach(self, lm: LanguageModel, tokens: Tokens) -> list[Removable]:
        """See `Edit.attach`."""
        hook = InputHook(self.begin(), tokens, self.partly_constant)
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
        where: Tokens that are changed, never padding; see `edit` for where a prompt ends.
        skip_first: Whether each row's first token, the attention sink, is left as it is.
        last: Number of tokens at the end of a prompt that are changed, and all that is generated;
            None for all tokens. It too needs to know where the prompt ends.
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
        at = self._at(tokens)
        if at is None:
            return None
        vectors = self.vectors.to(hidden.device, torch.promote_types(hidden.dtype, torch.float32))
        if vectors.ndim == 2:
            if len(vectors) != hidden.shape[0]:
                raise MelboError(
                    f"got {len(vectors)} vectors for a batch of {hidden.shape[0]} rows: "
                    "expected one for each"
                )
            vectors = vectors[:, None]
        steered = at.to(hidden.device, vectors.dtype)[:, :, None]
        return (hidden + steered * vectors).to(hidden.dtype)

    def _at(self, tokens: Tokens) -> Tensor | None:
        """Mask of the tokens that are steered ``[rows or 1, T]``; None for no token at all."""
        at = steered_tokens(tokens.index, self.skip_first, None)
        if self.where == "all" and self.last is None:
            return at
        read = tokens.split()
        if read == (0 if self.where == "prompt" else tokens.length) and self.where != "all":
            return None
        if self.where == "prompt":
            at[:, read:] = False
        if self.where == "generated":
            at[:, :read] = False
        elif self.last is not None and read:
            beyond = tokens.last_of_prompt().to(at.device) - self.last
            at[:, :read] &= tokens.index[:, :read] > beyond
        return at


@contextmanager
def edit(lm: LanguageModel, *edits: Edit, prompt: int | None = None) -> Generator[None, None, None]:
    """Apply edits inside the ``with`` block, with a KV cache or without; undone exactly on leaving.

    The prompt is what ``generate`` is asked with, whether it is read at once, in chunks, or again
    for every token. Where the model is called by hand, what stands on no cache is prompt and what
    runs on one is generated, token by token; say ``prompt`` for anything else.

    Args:
        lm: The model.
        edits: The edits.
        prompt: Number of columns of the prompt, padding included; left out, see above.

    Raises:
        MelboError: An edit does not fit the model (see `Edit.check`), or, at the forward pass,
            there is another number of rows than vectors, or an edit needs to know prompt from reply
            where nobody can tell.
    """
    for e in edits:
        e.check(lm)
    tokens = Tokens(prompt)
    handles: list[Removable] = []
    with tokens.watching(lm):
        try:
            for e in edits:
                handles += e.attach(lm, tokens)
            yield
        finally:
            for handle in reversed(handles):
                handle.remove()
