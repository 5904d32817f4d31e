"""Any differentiable torch function as a map."""

from collections.abc import Sequence

import torch

from melbo.errors import MelboError
from melbo.maps.base import Function, Piece
from melbo.maps.smooth import SmoothMap


class FunctionMap(SmoothMap):
    """A torch function as a map, so that every method runs, and is tested, without a model.

    Args:
        fn: ``[k, d_source] → [k, d_target]``, differentiable, rows independent, ``fn(0) = 0``.
        d_source: Width of a perturbation.
        d_target: Width of a response.
        dtype: Type in which ``fn`` computes.
        chunk: Rows that are handed to ``fn`` at a time.
        device: Where ``fn`` computes.
        parts: Widths of the parts of a perturbation (see `Map`).

    Raises:
        MelboError: ``fn(0)`` has the wrong shape or is not zero.
    """

    def __init__(
        self,
        fn: Function,
        d_source: int,
        d_target: int,
        dtype: torch.dtype = torch.float32,
        chunk: int = 1024,
        device: str = "cpu",
        parts: Sequence[int] = (),
    ) -> None:
        self.d_source, self.d_target = d_source, d_target
        self.dtype, self.tokens_per_pass = dtype, chunk
        self.device = torch.device(device)
        self.fn, self.parts = fn, tuple(parts)
        with torch.no_grad():
            at_zero = fn(torch.zeros(1, d_source, dtype=dtype, device=self.device))
        if at_zero.shape != (1, d_target):
            raise MelboError(
                f"fn maps [1, {d_source}] to {tuple(at_zero.shape)}, expected [1, {d_target}]"
            )
        if not at_zero.abs().max() <= 1e-6:
            raise MelboError(
                f"fn(0) has norm {at_zero.norm():.2g}, expected 0: "
                "subtract the unperturbed response"
            )

    @property
    def pieces(self) -> Sequence[Piece]:
        """The function, as one piece."""
        return [Piece(self.fn, slice(0, self.d_target), 1)]
