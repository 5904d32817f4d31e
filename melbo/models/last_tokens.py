"""The last tokens of a prompt by themselves: blocks that find the keys and values of the earlier tokens where they look for a cache.

What stands before cannot depend on what comes after, so a late block that is read at the last tokens only needs keys and values of all
tokens and everything else of those few; and where only the last tokens are steered, every block does. Nothing here knows an architecture:
a block that does not take this is found out by running it on the unsteered stream, and runs whole.
"""

import contextlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from melbo.models.replay import Adapt, Call, Path, Run, Shared, Slice, call_block, repeat

KeysValues = tuple[
    Tensor, Tensor
]  # of one block at the tokens before the tail, each [n, heads, T − length, head width]

_CACHE = ("past_key_values", "layer_past", "past_key_value")


@dataclass(frozen=True)
class Tail:
    """The last ``length`` tokens of the prompts of a slice, which must all have the same number of tokens.

    Attributes:
        part: The slice.
        length: How many tokens.
        mask_given: Whether blocks recorded without a mask need one here (kernels that take "causal" to mean the first tokens do).
    """

    part: Slice
    length: int
    mask_given: bool

    def read(self, hidden: Tensor, run: Run = call_block) -> Tensor:
        """The stream leaving the slice at the tail: ``[k·n, T, d] → [k·n, length, d]``; the last block runs there only."""
        shared: Shared = {}
        *before, last = self.part.calls
        for call in before:
            hidden = call(hidden, self.part.spread(hidden), shared, run)
        adapt = self.part.spread(hidden)
        return self._at_tail(
            last,
            hidden[:, -self.length :],
            self._keys_values(last, hidden, adapt, shared),
            adapt,
            shared,
        )

    def replay(self, hidden: Tensor, kept: list[KeysValues]) -> Tensor:
        """As `Slice.replay`, on streams that differ at the tail only: ``[k·n, length, d] → [k·n, length, d]``, given `keep`."""
        adapt = self.part.spread(hidden)
        shared: Shared = {}
        times = len(hidden) // len(self.part.hidden)
        for call, (keys, values) in zip(self.part.calls, kept, strict=True):
            earlier = repeat(keys, times, 0), repeat(values, times, 0)
            hidden = self._at_tail(call, hidden, earlier, adapt, shared)
        return hidden

    def keep(self) -> list[KeysValues]:
        """Keys and values of the tokens before the tail in the unsteered run, block by block."""
        hidden, adapt = self.part.hidden, self.part.spread(self.part.hidden)
        shared: Shared = {}
        kept: list[KeysValues] = []
        with torch.no_grad():
            for call in self.part.calls:
                kept.append(self._keys_values(call, hidden, adapt, shared))
                hidden = call(hidden, adapt, shared)
        return kept

    def _keys_values(self, call: Call, hidden: Tensor, adapt: Adapt, shared: Shared) -> KeysValues:
        """Runs the block no further than to where it hands keys and values to its cache."""
        cache = _Taken()
        with contextlib.suppress(_Written):
            _with(call, _CACHE, cache)(hidden, adapt, shared)
        keys, values = cache.taken
        return keys[:, :, : -self.length], values[:, :, : -self.length]

    def _at_tail(
        self, call: Call, hidden: Tensor, kept: KeysValues, adapt: Adapt, shared: Shared
    ) -> Tensor:
        at = torch.arange(self.part.hidden.shape[1], device=hidden.device)
        mask = (at <= at[-self.length :, None])[None, None]  # [1, 1, length, T]

        def narrow(path: Path, tensor: Tensor) -> Tensor:
            axis = self.part.axes.token.get(path)
            if tensor is mask:
                return tensor
            return adapt(
                path,
                tensor if axis is None else tensor.narrow(axis, len(at) - self.length, self.length),
            )

        call = _with(call, _CACHE, _Before(*kept))
        if self.mask_given and _given(call, "attention_mask") is None:
            call = _with(call, ("attention_mask",), mask)
        return call(hidden, narrow, shared)


def find_tail(part: Slice, length: int) -> Tail | None:
    """The tail of a slice, or None where its blocks cannot run on it: prompts of different lengths, blocks that do not use a cache so."""
    if not part.mask.all() or part.mask.shape[1] <= length:
        return None
    truth = part.output[:, -length:]
    for mask_given in (True, False):
        tail = Tail(part, length, mask_given)
        try:
            with torch.no_grad():
                found = tail.replay(part.hidden[:, -length:], tail.keep()), tail.read(part.hidden)
        except Exception:  # whatever a block makes of it: the whole block is there to run instead
            continue
        tolerance = 1e-4 if truth.dtype in (torch.float32, torch.float64) else 3e-2
        if all(
            f.shape == truth.shape and (f - truth).norm() <= tolerance * truth.norm() for f in found
        ):
            return tail
    return None


class _Written(Exception):  # noqa: N818 (a signal, not an error)
    """The block has handed over its keys and values; nothing after that is needed."""


class _Taken(DynamicCache):
    """Takes what the block writes, and stops it there."""

    taken: KeysValues

    def update(
        self, key_states: Tensor, value_states: Tensor, *more: Any, **named: Any
    ) -> KeysValues:
        self.taken = key_states, value_states
        raise _Written


class _Before(DynamicCache):
    """Hands out the keys and values of earlier tokens in front of those the block writes."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.before = keys, values

    def update(
        self, key_states: Tensor, value_states: Tensor, *more: Any, **named: Any
    ) -> KeysValues:
        keys, values = self.before
        return torch.cat([keys, key_states], 2), torch.cat([values, value_states], 2)


def _with(call: Call, names: Sequence[str], value: Any) -> Call:
    """The call with another value for the argument that has one of these names.

    Raises:
        LookupError: The block was not called with any of them.
    """
    for name in names:
        if name in call.kwargs:
            return replace(call, kwargs={**call.kwargs, name: value})
    at = next((i for i, name in enumerate(_positional(call)) if name in names), None)
    if at is None:
        raise LookupError(
            f"{type(call.block).__name__} was not called with any of {', '.join(names)}"
        )
    return replace(call, args=(*call.args[:at], value, *call.args[at + 1 :]))


def _given(call: Call, name: str) -> Any:
    return {**dict(zip(_positional(call), call.args, strict=True)), **call.kwargs}.get(name)


def _positional(call: Call) -> list[str]:
    """Names of the arguments that were given by position, hidden states left out."""
    return list(inspect.signature(call.block.forward).parameters)[1 : 1 + len(call.args)]
