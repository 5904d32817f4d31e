"""A slice of a decoder: run once, remember what each block was called with, replay the blocks with other hidden states.

Nothing here knows an architecture. Whatever masks, rotary embeddings or position ids a model hands to its blocks is recorded and handed
over again, so sliding windows, post-norms and mixtures of experts replay as they ran.
"""

from collections import UserDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from melbo.errors import MelboError

Path = tuple[int, str]  # block in the model, place of the tensor among the block's arguments
Adapt = Callable[[Path, Tensor], Tensor]
Shared = dict[
    int, UserDict
]  # copies, for one replay, of what blocks write to each other, by identity


def call_block(
    block: nn.Module, by_name: bool, hidden: Tensor, args: Sequence[Any], kwargs: dict[str, Any]
) -> Any:
    """``block`` on ``hidden``, with what else it was called with."""
    return (
        block(*args, hidden_states=hidden, **kwargs) if by_name else block(hidden, *args, **kwargs)
    )


Run = Callable[
    [nn.Module, bool, Tensor, Sequence[Any], dict[str, Any]], Any
]  # `call_block`, or the same compiled


class _Reached(Exception):  # noqa: N818 (a signal, not an error)
    """The last block of the slice has run; nothing after it is needed."""


@dataclass(frozen=True)
class Call:
    """What one block was called with, apart from the hidden states."""

    block: nn.Module
    index: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    by_name: bool  # whether the hidden states came as a keyword
    run: Run | None = None  # how this block in particular is to be called

    def __call__(
        self, hidden: Tensor, adapt: Adapt, shared: Shared, run: Run = call_block
    ) -> Tensor:
        """Run the block on ``hidden`` with its recorded arguments, each tensor passed through ``adapt`` first; its own ``run`` takes precedence."""
        args, kwargs = map_arguments(self.index, self.args, self.kwargs, adapt, shared)
        out = (self.run or run)(self.block, self.by_name, hidden, args, kwargs)
        return out[0] if isinstance(out, tuple) else out

    def tensors(self) -> Iterator[tuple[Path, Tensor]]:
        """Every tensor among the arguments with its path."""
        found: list[tuple[Path, Tensor]] = []

        def note(path: Path, tensor: Tensor) -> Tensor:
            found.append((path, tensor))
            return tensor

        map_arguments(self.index, self.args, self.kwargs, note, {})
        return iter(found)


@dataclass(frozen=True)
class Slice:
    """Blocks ``source`` … ``target − 1`` with everything they were called with on one batch of prompts.

    Attributes:
        calls: One per block.
        hidden: ``h_source`` ``[n, T, d]``, the residual stream entering the first block.
        output: ``h_target`` ``[n, T, d]``, the stream leaving the last one (no final norm).
        mask: ``[n, T]``, True on real tokens.
        axes: Along which axis the recorded tensors grow with the batch and with the prompt.
    """

    calls: tuple[Call, ...]
    hidden: Tensor
    output: Tensor
    mask: Tensor
    axes: "Axes"

    def replay(self, hidden: Tensor, run: Run = call_block) -> Tensor:
        """Run the blocks on other hidden states: ``[k·n, T, d]`` → ``[k·n, T, d]``, row ``i·n + j`` being prompt j."""
        for _, reached in self.trace(hidden, run):
            hidden = reached
        return hidden

    def trace(self, hidden: Tensor, run: Run = call_block) -> Iterator[tuple[int, Tensor]]:
        """As `replay`, yielding after each block the layer reached and the stream there."""
        shared: Shared = {}
        for call in self.calls:
            hidden = call(hidden, self.spread(hidden), shared, run)
            yield call.index + 1, hidden

    def spread(self, hidden: Tensor) -> Adapt:
        """What repeats a recorded tensor for as many copies of the batch as ``hidden`` holds."""
        times = hidden.shape[0] // self.hidden.shape[0]
        return lambda path, tensor: repeat(tensor, times, self.axes.batch.get(path))


@dataclass(frozen=True)
class Axes:
    """Which recorded tensors grow with the batch, and which with the prompt, and along which axis (the first of them)."""

    batch: dict[Path, int]
    token: dict[Path, int]


def repeat(tensor: Tensor, times: int, axis: int | None) -> Tensor:
    """``times`` copies of ``tensor`` one after the other along ``axis``, the tensor itself where that is None."""
    if axis is None or times == 1:
        return tensor
    if tensor.shape[axis] == 1:  # a view, no copy
        return tensor.expand([times if i == axis else -1 for i in range(tensor.ndim)])
    return tensor.repeat([times if i == axis else 1 for i in range(tensor.ndim)])


def capture(
    model: nn.Module,
    blocks: nn.ModuleList,
    ids: Tensor,
    mask: Tensor,
    source: int,
    target: int,
    axes: Axes,
) -> Slice:
    """Run the model up to block ``target − 1`` on ``ids`` ``[n, T]`` and keep what a replay needs.

    Raises:
        MelboError: The hidden states entering or leaving a block are not finite; names the layer.
    """
    calls: list[Call] = []
    entering: list[Tensor] = []
    leaving: list[Tensor] = []

    def before(index: int):
        def hook(block, args, kwargs):
            by_name = not args
            hidden = kwargs["hidden_states"] if by_name else args[0]
            _require_finite(hidden, mask, index)
            if index == source:
                entering.append(hidden.detach())
            rest = (
                {k: v for k, v in kwargs.items() if k != "hidden_states"}
                if by_name
                else dict(kwargs)
            )
            calls.append(Call(block, index, () if by_name else args[1:], rest, by_name))

        return hook

    def after(block, args, out):
        hidden = out[0] if isinstance(out, tuple) else out
        _require_finite(hidden, mask, target)
        leaving.append(hidden.detach())
        raise _Reached

    handles = [
        blocks[i].register_forward_pre_hook(before(i), with_kwargs=True)
        for i in range(source, target)
    ]
    handles.append(blocks[target - 1].register_forward_hook(after))
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=mask.long(), use_cache=False)
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return Slice(tuple(calls), entering[0], leaving[0], mask.to(entering[0].device), axes)


def grown_axes(one: Slice, two: Slice) -> dict[Path, int]:
    """Which recorded tensors differ in shape between two captures, and the first axis along which they do."""
    axes = {}
    for a, b in zip(one.calls, two.calls, strict=True):
        single = dict(a.tensors())
        for path, tensor in b.tensors():
            if path in single:
                grown = [
                    i
                    for i, (p, q) in enumerate(zip(single[path].shape, tensor.shape, strict=True))
                    if p != q
                ]
                if grown:
                    axes[path] = grown[0]
    return axes


def map_arguments(
    index: int, args: Sequence[Any], kwargs: dict[str, Any], fn: Adapt, shared: Shared
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a block is called with apart from the hidden states, every tensor passed through ``fn`` with its path."""
    return (
        tuple(_map_tensors(a, (index, str(i)), fn, shared) for i, a in enumerate(args)),
        {k: _map_tensors(a, (index, k), fn, shared) for k, a in kwargs.items()},
    )


def _map_tensors(
    value: Any, path: Path, fn: Callable[[Path, Tensor], Tensor], shared: Shared
) -> Any:
    """``value`` with every tensor in it passed through ``fn``; a UserDict is copied once and then the same for all that hold it."""
    if isinstance(value, Tensor):
        return fn(path, value)

    def inside(key: Any, v: Any) -> Any:
        return _map_tensors(v, (path[0], f"{path[1]}.{key}"), fn, shared)

    if type(value) in (tuple, list):
        return type(value)(inside(i, v) for i, v in enumerate(value))
    if type(value) is dict:
        return {k: inside(k, v) for k, v in value.items()}
    if isinstance(value, UserDict):
        if id(value) not in shared:
            shared[id(value)] = type(value)({k: inside(k, v) for k, v in value.items()})
        return shared[id(value)]
    return value


def _require_finite(hidden: Tensor, mask: Tensor, layer: int) -> None:
    real = hidden[mask.to(hidden.device)]
    if not torch.isfinite(real).all():
        raise MelboError(
            f"hidden_states[{layer}] of the unsteered model is not finite in {str(hidden.dtype).removeprefix('torch.')}: "
            "load the model in float32 or bfloat16, or check its weights"
        )
