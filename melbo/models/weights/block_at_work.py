"""A block at work on a few tokens: inputs and outputs of the modules inside it."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from melbo.models.language_model import LanguageModel
from melbo.models.replay import Call, Path, Shared, repeat
from melbo.models.weights.experts import Mixture
from melbo.models.weights.storage import has_hooks, in_memory

# for each module, its input and its output, [T, d] each
Passed = dict[nn.Module, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Seen:
    """A block as it was seen at work on a few tokens, in single precision at least.

    Attributes:
        passed: Inputs and outputs of its modules.
        mixtures: Its modules that have modules of their own, as they were called.
        after: The stream that leaves the block.
    """

    passed: Passed
    mixtures: dict[nn.Module, Mixture]
    after: Tensor


def few_tokens() -> tuple[Tensor, Tensor]:
    """Ids and mask of the few tokens on which blocks are looked at."""
    ids = torch.arange(1, 9)[None]
    return ids, torch.ones_like(ids, dtype=torch.bool)


def precise(tensor: Tensor) -> Tensor:
    """A tensor in single precision at least, if it holds floating-point numbers."""
    if not tensor.is_floating_point():
        return tensor
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def at_work(lm: LanguageModel, call: Call, hidden: Tensor, shared: Shared) -> Seen:
    """Inputs and outputs of a block's modules on ``hidden``, and the stream that leaves the block.

    All of it is in single precision at least.

    Args:
        lm: The model.
        call: The block as it was called on one row.
        hidden: The stream that enters it ``[rows, T, d]``.
        shared: See `Call`.
    """
    block = call.block
    half = any(p.dtype in (torch.bfloat16, torch.float16) for p in block.parameters())
    if half or (has_hooks(block) and any(p.is_meta for p in block.parameters())):
        block = in_memory(lm.model, _path(lm.model, block))
        block = block.float() if half else block
    first = next((p for p in block.parameters() if not p.is_meta), hidden)
    hidden = hidden.to(first.device)

    def adapt(path: Path, tensor: Tensor) -> Tensor:
        return repeat(precise(tensor).to(first.device), len(hidden), lm.axes.batch.get(path))

    with watch(call.block, block, hidden.shape) as (passed, mixtures), torch.no_grad():
        after = replace(call, block=block)(hidden, adapt, shared)
    return Seen(passed, mixtures, after)


def _path(model: nn.Module, module: nn.Module) -> str:
    """Dotted name of a module."""
    found: str = next(name for name, m in model.named_modules() if m is module)
    return found


@contextmanager
def watch(
    block: nn.Module, runs: nn.Module, shape: torch.Size
) -> Generator[tuple[Passed, dict[nn.Module, Mixture]], None, None]:
    """Note the inputs and outputs of a block's modules whose output has the stream's shape.

    Modules are noted in the order in which they finish; those that have modules of their own also
    with how they were called.

    Args:
        block: The block, whose modules are the keys of the result.
        runs: The block itself, or a copy that runs in its stead.
        shape: Shape of the stream.
    """
    passed: Passed = {}
    mixtures: dict[nn.Module, Mixture] = {}

    def note(
        module: nn.Module,
        running: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Any,
    ) -> None:
        out = first_tensor(out)
        if isinstance(out, Tensor) and out.numel() == shape.numel() and out.shape[-1] == shape[-1]:
            entered = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), out)
            entered = entered if entered.numel() == out.numel() else out
            # copies, because some blocks add up in place
            if module not in passed:
                passed[module] = (exact_rows(entered), exact_rows(out))
                if next(running.parameters(), None) is not None:
                    mixtures[module] = Mixture(running, args, kwargs)

    handles = [
        runs.get_submodule(name).register_forward_hook(partial(note, module), with_kwargs=True)
        for name, module in block.named_modules()
        if module is not block
    ]
    try:
        yield passed, mixtures
    finally:
        for handle in handles:
            handle.remove()


def first_tensor(out: Any) -> Any:
    """Result of a module, without whatever comes with it."""
    return out[0] if isinstance(out, tuple) else out


def exact_rows(hidden: Tensor) -> Tensor:
    """A copy in double precision, one token a row."""
    return hidden.to(torch.float64, copy=True).flatten(0, -2)
