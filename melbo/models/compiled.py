"""Blocks through ``torch.compile``, which fuses their element-wise work: once for all blocks and all shapes, and never at any cost.

Compiling takes about half a minute on a CPU and saves 4 to 8 % of a sweep there (docs/performance.md), so it is not for short work.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from melbo.models.replay import Run, call_block

#: Floating-point operations of plain work on a CPU after which compiling has cost less than going without.
WORTH = 4e13

_broken = False


@cache
def _compiled() -> Run:
    # symbolic sizes: one graph for every number of rows and tokens; another only for another kind of block
    return torch.compile(call_block, dynamic=True)


@contextmanager
def _settings() -> Iterator[None]:
    """Failures of the backward graph come at once, where they can be caught; sizes that happen to be equal are not taken to be so always."""
    import torch._functorch.config as functorch
    import torch.fx.experimental._config as shapes

    with ExitStack() as stack:
        for config, name, value in (
            (functorch, "force_non_lazy_backward_lowering", True),
            (shapes, "use_duck_shape", False),
        ):
            if hasattr(config, name):
                stack.enter_context(config.patch(name, value))
        yield


def call_compiled(
    block: nn.Module, by_name: bool, hidden: Tensor, args: Sequence[Any], kwargs: dict[str, Any]
) -> Any:
    """As `melbo.slice.call_block`, compiled. Where that cannot be done it says so once and goes on uncompiled."""
    global _broken
    if not _broken and len(hidden) > 1:  # a single row would take a graph of its own
        try:
            with _settings():
                fresh = (
                    hidden.clone() if hidden._is_view() else hidden
                )  # a view would take another graph
                return _compiled()(block, by_name, fresh, args, kwargs)
        except torch.OutOfMemoryError:
            raise
        except Exception as err:  # no compiler, an architecture it does not take: there is nothing a user could do about it here
            _broken = True
            reason = " ".join(str(err).split())[:120]
            warnings.warn(
                f"blocks run uncompiled ({type(err).__name__}: {reason}); compile=False says so beforehand",
                stacklevel=2,
            )
    return call_block(block, by_name, hidden, args, kwargs)
