"""The last tokens of a prompt by themselves, on keys and values of the tokens before them.

Earlier tokens cannot depend on later ones. A late block that is read at the last tokens therefore
needs only keys and values of all tokens and everything else of those few; where only the last
tokens are steered, this holds for every block. The keys and values are handed over where a block
looks for a cache. Nothing here knows an architecture: a trial on the unsteered stream shows whether
a block takes them, and one that does not runs whole.
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

# keys and values of one block at the tokens before the tail, [n, heads, T − length, head width]
KeysValues = tuple[Tensor, Tensor]

_CACHE = ("past_key_values", "layer_past", "past_key_value")


@dataclass(frozen=True)
class Tail:
    """The last tokens of the prompts of a slice, which all have the same number of tokens.

    Attributes:
        part: The slice.
        length: Number of last tokens.
        mask_given: Whether blocks recorded without a mask need one here, because their kernels take
            "causal" to mean the first tokens.
    """

    part: Slice
    length: int
    mask_given: bool

    def read(self, hidden: Tensor, run: Run = call_block) -> Tensor:
        """Replay the slice and read the tail; the last block runs there only.

        Args:
            hidden: Streams entering the slice ``[k·n, T, d]``.
            run: Function that calls each block but the last.

        Returns:
            The stream leaving the slice at the tail ``[k·n, length, d]``.
        """
        shared: Shared = {}
        *before, last = self.part.calls
        for call in before:
            hidden = call(hidden, self.part.spread(hidden), shared, run)
        adapt = self.part.spread(hidden)
        earlier = self._keys_values(last, hidden, adapt, shared)
        return self._at_tail(last, hidden[:, -self.length :], earlier, adapt, shared)

    def replay(self, hidden: Tensor, kept: list[KeysValues]) -> Tensor:
        """Replay the slice on streams that differ from the unsteered one at the tail only.

        Args:
            hidden: Streams entering the slice at the tail ``[k·n, length, d]``.
            kept: Result of `keep`.

        Returns:
            The stream leaving the slice at the tail ``[k·n, length, d]``.
        """
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
        """Run a block no further than to where it hands keys and values to its cache."""
        cache = _Taken()
        with contextlib.suppress(_Written):
            _with(call, _CACHE, cache)(hidden, adapt, shared)
        keys, values = cache.taken
        return keys[:, :, : -self.length], values[:, :, : -self.length]

    def _at_tail(
        self, call: Call, hidden: Tensor, kept: KeysValues, adapt: Adapt, shared: Shared
    ) -> Tensor:
        """Run a block at the tail, on keys and values of the tokens before it."""
        at = torch.arange(self.part.hidden.shape[1], device=hidden.device)
        mask = (at <= at[-self.length :, None])[None, None]  # [1, 1, length, T]

        def narrow(path: Path, tensor: Tensor) -> Tensor:
            if tensor is mask:
                return tensor
            axis = self.part.axes.token.get(path)
            if axis is not None:
                tensor = tensor.narrow(axis, len(at) - self.length, self.length)
            return adapt(path, tensor)

        call = _with(call, _CACHE, _Before(*kept))
        if self.mask_given and _given(call, "attention_mask") is None:
            call = _with(call, ("attention_mask",), mask)
        return call(hidden, narrow, shared)


def find_tail(part: Slice, length: int) -> Tail | None:
    """Find the tail of a slice.

    Args:
        part: The slice.
        length: Number of last tokens.

    Returns:
        The tail, or None where the blocks cannot run on it: prompts differ in length or are not
        longer than the tail, or a block does not use a cache in this way.
    """
    if not part.mask.all() or part.mask.shape[1] <= length:
        return None
    truth = part.output[:, -length:]
    tolerance = 1e-4 if truth.dtype in (torch.float32, torch.float64) else 3e-2
    for mask_given in (True, False):
        tail = Tail(part, length, mask_given)
        try:
            with torch.no_grad():
                found = tail.replay(part.hidden[:, -length:], tail.keep()), tail.read(part.hidden)
        except Exception:  # whatever it is: the whole block is there to run instead
            continue
        if all(
            f.shape == truth.shape and (f - truth).norm() <= tolerance * truth.norm() for f in found
        ):
            return tail
    return None


class _Written(Exception):  # noqa: N818 (a signal, not an error)
    """The block has handed over its keys and values; nothing after that is needed."""


class _Taken(DynamicCache):
    """Takes the keys and values that a block writes, and stops the block there."""

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
    """Change the argument that has one of these names.

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
    """Names of the arguments that were given by position, without the hidden states."""
    return list(inspect.signature(call.block.forward).parameters)[1 : 1 + len(call.args)]
