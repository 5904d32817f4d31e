"""Steering: add vectors to the residual stream where they were trained, for as long as a ``with`` block lasts."""

import math
from collections.abc import Iterator
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


@dataclass(frozen=True)
class Add:
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


@contextmanager
def edit(lm: LanguageModel, *edits: Add) -> Iterator[None]:
    """Apply edits inside the ``with`` block, with a KV cache or without; undone exactly on leaving.

    Without a cache every token of a pass counts as prompt, so ``where`` other than ``"all"`` needs one.

    Raises:
        MelboError: A layer that no block reads, a width that does not fit, or (at the forward pass) another number of rows than vectors.
    """
    for e in edits:
        if lm.layer(e.layer) == lm.depth:
            raise MelboError(f"cannot steer at layer {e.layer}: {lm.name} has blocks 0 to {lm.depth - 1}")
        if e.vectors.shape[-1] != lm.width or e.vectors.ndim not in (1, 2):
            raise MelboError(f"got vectors of shape {tuple(e.vectors.shape)}, expected [{lm.width}] or [rows, {lm.width}]")
        if e.where not in ("all", "prompt", "generated"):
            raise MelboError(f"where is {e.where!r}: expected 'all', 'prompt' or 'generated'")
    tokens = _CurrentTokens()
    trunk = getattr(lm.model, "base_model", lm.model)
    handles = [trunk.register_forward_pre_hook(tokens, with_kwargs=True)]
    handles += [lm.blocks[lm.layer(e.layer)].register_forward_pre_hook(_adder(e, tokens), with_kwargs=True) for e in edits]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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


class _CurrentTokens:
    """Pre-hook on the trunk: knows which tokens the forward pass under way is about."""

    def __init__(self) -> None:
        self.index = torch.zeros(1, 1)  # [rows or 1, T]: place among the real tokens of the row, −1 on padding
        self.generated = False

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
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


def _adder(e: Add, tokens: _CurrentTokens):
    def hook(block: nn.Module, args: tuple, kwargs: dict[str, Any]):
        if e.where == ("prompt" if tokens.generated else "generated"):
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        vectors = e.vectors.to(hidden.device, torch.promote_types(hidden.dtype, torch.float32))
        if vectors.ndim == 2 and len(vectors) != hidden.shape[0]:
            raise MelboError(f"got {len(vectors)} vectors for a batch of {hidden.shape[0]} rows: expected one for each")
        at = tokens.index >= (1 if e.skip_first else 0)  # [rows or 1, T]
        if e.last is not None and not tokens.generated:
            at &= tokens.index > tokens.index.max(1, keepdim=True).values - e.last
        steered = at.to(hidden.device, vectors.dtype)[:, :, None]
        new = (hidden + steered * (vectors[:, None] if vectors.ndim == 2 else vectors)).to(hidden.dtype)
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    return hook
