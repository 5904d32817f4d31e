"""Blocks through ``torch.compile``, which fuses their element-wise work.

One graph serves all blocks of a kind and all shapes. Compiling takes about half a minute on a CPU
and saves 4 to 8 % of a sweep there (docs/performance.md), so it does not pay for short work.
"""

import warnings
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from melbo.models.replay import Run, call_block

#: Floating-point operations on a CPU after which compiling has cost less than going without.
WORTH = 4e13


class BlockCompiler:
    """Runs blocks as `melbo.models.replay.call_block` does, compiled.

    Where compiling fails, a warning says so once, and blocks run uncompiled from then on.

    Attributes:
        failed: Whether compiling has failed.
    """

    def __init__(self) -> None:
        self.failed = False
        self._compiled: Run | None = None

    def __call__(
        self,
        block: nn.Module,
        by_name: bool,
        hidden: Tensor,
        args: Sequence[Any],
        kwargs: dict[str, Any],
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

        Raises:
            torch.OutOfMemoryError: Memory runs out, which says nothing against compiling.
        """
        if self.failed or len(hidden) < 2:  # a single row would take a graph of its own
            return call_block(block, by_name, hidden, args, kwargs)
        try:
            with _settings():
                # a view would take another graph
                fresh = hidden.clone() if hidden._is_view() else hidden
                return self._run()(block, by_name, fresh, args, kwargs)
        except torch.OutOfMemoryError:
            raise
        # there may be no compiler, or the architecture may not compile: the user cannot mend either
        except Exception as err:
            self.failed = True
            reason = " ".join(str(err).split())[:120]
            warnings.warn(
                f"blocks run uncompiled ({type(err).__name__}: {reason}); "
                "compile=False says so beforehand",
                stacklevel=2,
            )
        return call_block(block, by_name, hidden, args, kwargs)

    def _run(self) -> Run:
        if self._compiled is None:
            # symbolic sizes: one graph for every number of rows and tokens
            self._compiled = torch.compile(call_block, dynamic=True)
        return self._compiled


#: The one compiler of a process.
call_compiled = BlockCompiler()


@contextmanager
def _settings() -> Generator[None, None, None]:
    """Settings of torch under which one graph is enough and failures can be caught.

    Failures of the backward graph show in the forward pass, and sizes that happen to be equal are
    not taken to be equal always.
    """
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
