"""Steering: add vectors to the residual stream where they were trained, for as long as a ``with`` block lasts."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .errors import MelboError
from .features import FeatureSet
from .model import LanguageModel
from .prompts import token_index

Where = Literal["all", "prompt", "generated"]


class Tokens:
    """Pre-hook on the trunk of the model: knows which tokens the forward pass under way is about.

    Attributes:
        index: Place of each token among the real ones of its row, −1 on padding: ``[rows or 1, T]``.
        generated: Whether the pass stands on a KV cache.
    """

    def __init__(self) -> None:
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
        elif mask is not None and positions is not None:  # a mask made ready beforehand, as with static caches
            self.index = positions.reshape(-1, *positions.shape[-2:])[0]
        else:
            self.index = torch.arange(past, past + length, device=ids.device)[None]
        self.generated = past > 0


Change = Callable[[Tensor, Tokens], Tensor | None]  # of the input of a block, [rows, T, d]; None leaves it as it is


class Edit(ABC):
    """Something done to the input of one block.

    Attributes:
        layer: Which block (``hidden_states`` index, negative from the end).
    """

    layer: int

    def check(self, lm: LanguageModel) -> None:
        """Refuse what cannot work on this model.

        Raises:
            MelboError: A layer that no block reads.
        """
        if lm.layer(self.layer) == lm.depth:
            raise MelboError(f"cannot steer at layer {self.layer}: {lm.name} has blocks 0 to {lm.depth - 1}")

    @abstractmethod
    def begin(self) -> Change:
        """What to do with the hidden states for as long as a ``with`` block lasts."""


@dataclass(frozen=True)
class Add(Edit):
    """Add vectors to the input of a block: h_layer ← h_layer + v.

    Attributes:
        layer: Block whose input is changed (``hidden_states`` index, negative from the end).
        vectors: ``[d]``, the same for every row of a batch, or ``[rows, d]``, one for each.
        where: At which tokens. With a KV cache, what runs on top of the cache is generated, what fills it is prompt; padding never.
        skip_first: Leave each row's first token, the attention sink, as it is.
        last: Of a prompt, change only this many tokens at its end.
    """

    layer: int
    vectors: Tensor
    where: Where = "all"
    skip_first: bool = False
    last: int | None = None

    def check(self, lm: LanguageModel) -> None:
        """See `Edit.check`; also the vectors' width, and ``where``."""
        super().check(lm)
        if self.vectors.shape[-1] != lm.width or self.vectors.ndim not in (1, 2):
            raise MelboError(f"got vectors of shape {tuple(self.vectors.shape)}, expected [{lm.width}] or [rows, {lm.width}]")
        if self.where not in ("all", "prompt", "generated"):
            raise MelboError(f"where is {self.where!r}: expected 'all', 'prompt' or 'generated'")

    def begin(self) -> Change:
        """Nothing is remembered from pass to pass."""
        return self._change

    def _change(self, hidden: Tensor, tokens: Tokens) -> Tensor | None:
        if self.where == ("prompt" if tokens.generated else "generated"):
            return None
        vectors = self.vectors.to(hidden.device, torch.promote_types(hidden.dtype, torch.float32))
        if vectors.ndim == 2 and len(vectors) != hidden.shape[0]:
            raise MelboError(f"got {len(vectors)} vectors for a batch of {hidden.shape[0]} rows: expected one for each")
        at = tokens.index >= (1 if self.skip_first else 0)  # [rows or 1, T]
        if self.last is not None and not tokens.generated:
            at &= tokens.index > tokens.index.max(1, keepdim=True).values - self.last
        steered = at.to(hidden.device, vectors.dtype)[:, :, None]
        return (hidden + steered * (vectors[:, None] if vectors.ndim == 2 else vectors)).to(hidden.dtype)


@contextmanager
def edit(lm: LanguageModel, *edits: Edit) -> Iterator[None]:
    """Apply edits inside the ``with`` block, with a KV cache or without; undone exactly on leaving.

    Without a cache every token of a pass counts as prompt, so ``where`` other than ``"all"`` needs one.

    Raises:
        MelboError: A layer that no block reads, a width that does not fit, or (at the forward pass) another number of rows than vectors.
    """
    for e in edits:
        e.check(lm)
    tokens = Tokens()
    trunk = getattr(lm.model, "base_model", lm.model)
    handles = [trunk.register_forward_pre_hook(tokens, with_kwargs=True)]
    handles += [lm.blocks[lm.layer(e.layer)].register_forward_pre_hook(_hook(e.begin(), tokens), with_kwargs=True) for e in edits]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(change: Change, tokens: Tokens):
    def hook(block: nn.Module, args: tuple, kwargs: dict[str, Any]):
        new = change(args[0] if args else kwargs["hidden_states"], tokens)
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    return hook


def steer(
    lm: LanguageModel, *features: FeatureSet, strength: float = 1.0, where: Where = "all", per_row: bool = False
) -> AbstractContextManager[None]:
    """Steer with one feature or several at once: adds ``strength``·R·v at the layer, and the tokens, it was fitted at.

    Args:
        lm: The model the features were fitted on.
        features: Sets of one feature each (``bank[3], bank[7]``), added together; with ``per_row``, sets with a feature for every row of the
            batches that will be run.
        strength: 1 is the scale of the fit; negative pushes the other way.
        where: ``"all"`` (as in the fit), ``"prompt"`` or ``"generated"`` tokens.
        per_row: Feature i steers row i.

    Returns:
        A context manager.

    Raises:
        MelboError: Features of another model, or a set of several without ``per_row``.
    """
    for bank in features:
        bank.check_model(lm)
        if len(bank) != 1 and not per_row:
            raise MelboError(f"got a set of {len(bank)} features: pass bank[3], several as bank[3], bank[7], or per_row=True for one a row")
    return edit(lm, *(as_edit(bank, strength, where, per_row) for bank in features))


def as_edit(bank: FeatureSet, strength: float = 1.0, where: Where = "all", per_row: bool = False) -> Add:
    """The edit that steering with ``bank`` makes.

    Raises:
        MelboError: A strength that is not finite.
    """
    check_strength(strength)
    vectors = strength * bank.scale * bank.V
    fitted = bank.meta.get("map", {})
    last = fitted["target_tokens"] if fitted.get("positions") == "target" else None
    return Add(bank.source, vectors if per_row else vectors[0], where, bool(fitted.get("skip_first", False)), last)


def check_strength(strength: float) -> None:
    """Refuse a strength that is not a finite number.

    Raises:
        MelboError: It is not.
    """
    if not math.isfinite(strength):
        raise MelboError(f"strength is {strength}: expected a finite number; 1 is the scale of the fit")
