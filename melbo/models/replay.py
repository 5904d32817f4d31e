"""A slice of a decoder, run once and replayed with other hidden states.

Nothing here knows an architecture. Whatever masks, rotary embeddings or position ids a model hands
to its blocks is recorded and handed over again, so that sliding windows, post-norms and mixtures of
experts replay as they ran.
"""

from collections import UserDict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from melbo.errors import MelboError
from melbo.models.changes import call_pre_hooks, is_hooked, modules_around, own_hooks

# index of a block in the model, place of a tensor among the block's arguments
Path = tuple[int, str]
Adapt = Callable[[Path, Tensor], Tensor]
# copies, for one replay, of the dictionaries that blocks share, by identity
Shared = dict[int, UserDict[Any, Any]]
# signature of `call_block`, and of anything that stands in for it
Run = Callable[[nn.Module, bool, Tensor, Sequence[Any], dict[str, Any]], Any]


def call_block(
    block: nn.Module, by_name: bool, hidden: Tensor, args: Sequence[Any], kwargs: dict[str, Any]
) -> Any:
    """Call a block.

    Args:
        block: The block.
        by_name: Whether it takes the hidden states as a keyword.
        hidden: The hidden states ``[rows, T, d]``.
        args: Its other positional arguments.
        kwargs: Its other keyword arguments.

    Returns:
        Output of the block, a tensor or a tuple that begins with one.
    """
    if by_name:
        return block(*args, hidden_states=hidden, **kwargs)
    return block(hidden, *args, **kwargs)


class _Reached(Exception):  # noqa: N818 (a signal, not an error)
    """The last block of the slice has run; nothing after it is needed."""


@dataclass(frozen=True)
class Call:
    """One block and its recorded arguments, without the hidden states.

    Attributes:
        block: The block.
        index: Index of the block in the model.
        args: Its other positional arguments.
        kwargs: Its other keyword arguments.
        by_name: Whether the hidden states came as a keyword.
        run: Function that calls this block, whatever a replay asks for; None for the replay's.
        hooked: Whether hooks on the block may have changed these arguments already.
        first: Whether the block is the first of its slice, whose recorded stream is behind hooks.
    """

    block: nn.Module
    index: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    by_name: bool
    run: Run | None = None
    hooked: bool = False
    first: bool = False

    def __call__(
        self, hidden: Tensor, adapt: Adapt, shared: Shared, run: Run = call_block
    ) -> Tensor:
        """Run the block on other hidden states with its recorded arguments.

        Args:
            hidden: The hidden states ``[rows, T, d]``.
            adapt: Applied to each recorded tensor first.
            shared: Copies of the dictionaries that blocks share, the same throughout a replay.
            run: Function that calls the block, unless it has a ``run`` of its own.

        Returns:
            The hidden states that leave the block ``[rows, T, d]``.
        """
        args, kwargs = map_arguments(self.index, self.args, self.kwargs, adapt, shared)
        with self._past_hooks(hidden, args, kwargs):
            out = (self.run or run)(self.block, self.by_name, hidden, args, kwargs)
        left: Tensor = out[0] if isinstance(out, tuple) else out
        return left

    @contextmanager
    def _past_hooks(
        self, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Generator[None, None, None]:
        """Undo, inside the ``with`` block, what pre-hooks do once more to a call's arguments.

        They ran when the arguments were recorded. The stream of a later block has not passed its
        hooks yet.
        """
        if not self.hooked:
            yield
            return

        def put_back(block: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
            now = named["hidden_states"] if self.by_name else given[0]
            now = hidden if self.first else now
            if self.by_name:
                return args, {**kwargs, "hidden_states": now}
            return (now, *args), kwargs

        with self.block.register_forward_pre_hook(put_back, with_kwargs=True):
            yield

    def tensors(self) -> Iterator[tuple[Path, Tensor]]:
        """Every tensor among the arguments, with its path."""
        found: list[tuple[Path, Tensor]] = []

        def note(path: Path, tensor: Tensor) -> Tensor:
            found.append((path, tensor))
            return tensor

        map_arguments(self.index, self.args, self.kwargs, note, {})
        return iter(found)


@dataclass(frozen=True)
class Around:
    """A module around the blocks, with hooks of its own, and what it was called with.

    Attributes:
        module: The module.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        rows: Number of rows of the batch.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rows: int

    def announce(self, times: int) -> None:
        """Show the module's pre-hooks a batch of ``times`` as many rows, as if it were called."""

        def more(path: Path, tensor: Tensor) -> Tensor:
            grows = tensor.ndim > 1 and len(tensor) == self.rows
            return repeat(tensor, times, 0 if grows else None)

        call_pre_hooks(self.module, *map_arguments(-1, self.args, self.kwargs, more, {}))


@dataclass(frozen=True)
class Axes:
    """Axes along which recorded tensors grow; of several, the first.

    Attributes:
        batch: For each tensor that grows with the batch, its axis.
        token: For each tensor that grows with the prompt, its axis.
    """

    batch: dict[Path, int]
    token: dict[Path, int]


@dataclass(frozen=True)
class Slice:
    """Blocks ``source`` … ``target − 1`` and their recorded arguments on a batch of prompts.

    Attributes:
        calls: One call for each block.
        hidden: ``h_source`` ``[n, T, d]``, the residual stream entering the first block.
        output: ``h_target`` ``[n, T, d]``, the stream leaving the last one (no final norm).
        mask: True on real tokens ``[n, T]``.
        axes: Axes along which the recorded tensors grow.
        around: Calls of the modules around the blocks whose hooks tell those on the blocks what a
            pass is about.
    """

    calls: tuple[Call, ...]
    hidden: Tensor
    output: Tensor
    mask: Tensor
    axes: Axes
    around: tuple[Around, ...] = ()

    @property
    def hooked(self) -> bool:
        """Tell whether hooks on the blocks take part in replays."""
        return any(call.hooked for call in self.calls)

    def replay(self, hidden: Tensor, run: Run = call_block) -> Tensor:
        """Run the blocks on other hidden states.

        Args:
            hidden: Hidden states ``[k·n, T, d]``; row ``i·n + j`` belongs to prompt j.
            run: Function that calls each block.

        Returns:
            The stream leaving the last block ``[k·n, T, d]``.
        """
        for _, reached in self.trace(hidden, run):
            hidden = reached
        return hidden

    def trace(self, hidden: Tensor, run: Run = call_block) -> Iterator[tuple[int, Tensor]]:
        """Replay, block by block.

        Args:
            hidden: See `replay`.
            run: See `replay`.

        Yields:
            After each block, the layer that is reached and the stream there.
        """
        shared: Shared = {}
        for outer in self.around:
            outer.announce(len(hidden) // len(self.hidden))
        for call in self.calls:
            hidden = call(hidden, self.spread(hidden), shared, run)
            yield call.index + 1, hidden

    def spread(self, hidden: Tensor) -> Adapt:
        """Repeat recorded tensors for as many copies of the batch as ``hidden`` holds."""
        times = hidden.shape[0] // self.hidden.shape[0]
        return lambda path, tensor: repeat(tensor, times, self.axes.batch.get(path))


def repeat(tensor: Tensor, times: int, axis: int | None) -> Tensor:
    """Copies of a tensor one after the other along an axis; the tensor itself if that is None."""
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
    """Run a model up to block ``target − 1`` and keep what a replay needs.

    Args:
        model: The model.
        blocks: Its decoder blocks.
        ids: Token ids ``[n, T]``.
        mask: True on real tokens ``[n, T]``.
        source: Layer that the slice begins at.
        target: Layer that it ends at.
        axes: Axes along which the recorded tensors grow.

    Raises:
        MelboError: The hidden states entering or leaving a block are not finite; names the layer.
    """
    calls: list[Call] = []
    entering: list[Tensor] = []
    leaving: list[Tensor] = []
    hooked = [is_hooked([block]) for block in blocks[source:target]]

    def before(index: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            by_name = not args
            hidden = kwargs["hidden_states"] if by_name else args[0]
            _require_finite(hidden, mask, index)
            if index == source:
                entering.append(hidden.detach())
            rest = {k: v for k, v in kwargs.items() if not by_name or k != "hidden_states"}
            first, own = index == source, hooked[index - source]
            calls.append(Call(block, index, args[1:], rest, by_name, hooked=own, first=first))

        return hook

    def after(block: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        hidden = out[0] if isinstance(out, tuple) else out
        _require_finite(hidden, mask, target)
        leaving.append(hidden.detach())
        raise _Reached

    with ExitStack() as hooks:
        for i in range(source, target):
            hooks.enter_context(blocks[i].register_forward_pre_hook(before(i), with_kwargs=True))
        hooks.enter_context(blocks[target - 1].register_forward_hook(after))
        around = _note_around(model, blocks, len(ids), hooks) if any(hooked) else []
        try:
            with torch.no_grad():
                model(input_ids=ids, attention_mask=mask.long(), use_cache=False)
        except _Reached:
            pass
    on = entering[0].device
    return Slice(tuple(calls), entering[0], leaving[0], mask.to(on), axes, tuple(around))


def _note_around(
    model: nn.Module, blocks: nn.ModuleList, rows: int, hooks: ExitStack
) -> list[Around]:
    """Make note of what modules around the blocks are called with, if they have hooks."""
    around: list[Around] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        around.append(Around(module, args, kwargs, rows))

    for module in modules_around(model, blocks):
        if own_hooks(module):
            hooks.enter_context(module.register_forward_pre_hook(note, with_kwargs=True))
    return around


def grown_axes(one: Slice, two: Slice) -> dict[Path, int]:
    """First axis in which each recorded tensor differs between two captures, where it does."""
    axes: dict[Path, int] = {}
    for a, b in zip(one.calls, two.calls, strict=True):
        single = dict(a.tensors())
        for path, tensor in b.tensors():
            if path in single:
                sizes = zip(single[path].shape, tensor.shape, strict=True)
                grown = [i for i, (was, now) in enumerate(sizes) if was != now]
                if grown:
                    axes[path] = grown[0]
    return axes


def map_arguments(
    index: int, args: Sequence[Any], kwargs: dict[str, Any], fn: Adapt, shared: Shared
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Apply a function to every tensor among a block's arguments.

    Args:
        index: Index of the block.
        args: Its positional arguments without the hidden states.
        kwargs: Its keyword arguments without the hidden states.
        fn: The function, of a tensor's path and the tensor.
        shared: Copies of the dictionaries that blocks share; new ones are added.

    Returns:
        The new arguments, positional ones and keywords.
    """
    return (
        tuple(_map_tensors(a, (index, str(i)), fn, shared) for i, a in enumerate(args)),
        {k: _map_tensors(a, (index, k), fn, shared) for k, a in kwargs.items()},
    )


def _map_tensors(value: Any, path: Path, fn: Adapt, shared: Shared) -> Any:
    """Apply ``fn`` to every tensor in ``value``.

    A UserDict is copied once; all that hold it get the same copy.
    """
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
            f"hidden_states[{layer}] of the unsteered model is not finite in "
            f"{str(hidden.dtype).removeprefix('torch.')}: "
            "load the model in float32 or bfloat16, or check its weights"
        )
