"""A map that counts its passes, and variants of the exponential method, for the sweeps script.

Work is counted, not timed: 1 for the forward and backward pass of one factor on one prompt, ½ for a
forward pass alone or a derivative at zero (which share their forward pass).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from melbo import CausalMap, Exponential
from melbo.maps.base import Map, Piece
from melbo.maps.smooth import SmoothMap, require_smooth
from melbo.maths.linalg import orthogonalise, random_rows, unit
from melbo.maths.transcoder import exponential_factors, fit_strengths
from melbo.methods.exponential import _State as State
from melbo.methods.iterate import Record
from melbo.methods.starts import projected_start


class Counted(SmoothMap):
    """Δ averaged over some prompts of a `CausalMap`, which counts its passes.

    Args:
        causal: The map.
        chosen: Indices of its pieces; all of them if left out.
        tally: Work so far, shared with subsets.
    """

    def __init__(
        self,
        causal: CausalMap,
        chosen: Sequence[int] | None = None,
        tally: list[float] | None = None,
    ) -> None:
        self.causal, self.tally = causal, [0.0] if tally is None else tally
        self.chosen = list(range(len(causal.pieces)) if chosen is None else chosen)
        for name in ("d_source", "d_target", "dtype", "device", "tokens_per_pass"):
            setattr(self, name, getattr(causal, name))

    @property
    def pieces(self) -> list[Piece]:
        """Pieces of the chosen prompts, weighted so that they average."""
        every = self.causal.pieces
        weight = len(every) / len(self.chosen)
        return [_weighted(every[i], weight) for i in self.chosen]

    def subset(self, chosen: Sequence[int]) -> "Counted":
        """The map on a few of the prompts, counting in the same tally."""
        return Counted(self.causal, chosen, self.tally)

    def _count(self, passes: float) -> None:
        self.tally[0] += passes * len(self.chosen)

    def value(self, theta: Tensor) -> Tensor:
        """See `Map.value`; a forward pass counts one half."""
        self._count(len(theta) / 2)
        return super().value(theta)

    def value_and_vjp(
        self, theta: Tensor, cotangent: Tensor | Callable[[Tensor, slice], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """See `Map.value_and_vjp`; a forward and a backward pass count one."""
        self._count(len(theta))
        return super().value_and_vjp(theta, cotangent)

    def vjp(self, u: Tensor) -> Tensor:
        """See `SmoothMap.vjp`; backward passes that share one forward pass count one half."""
        self._count(len(u) / 2)
        return super().vjp(u)


def _weighted(piece: Piece, weight: float) -> Piece:
    return Piece(lambda theta: weight * piece.fn(theta), piece.columns, piece.cost)


@dataclass(frozen=True)
class Jacobi(Exponential):
    """The gradient of ⟨u, Δ⟩ with u of the sweep before; the first sweep has none, and is usual."""

    def step(self, map: Map, state: State) -> tuple[State, Record]:
        """Make a sweep whose u lags behind v."""
        if not state.U.any():
            return super().step(map, state)
        V = orthogonalise(state.V, "qr", state.gain)
        D, gradient = map.value_and_vjp(self.scale * V, state.U)
        factors = exponential_factors(V, D, self.nonnegative)
        gain = self.scale * gradient.norm(dim=-1)
        return State(unit(gradient, fallback=V), unit(D), gain, factors), {}


@dataclass(frozen=True)
class Blocks(Exponential):
    """Gauss–Seidel over factors, strongest first.

    Each block is pushed away from what the blocks before it have just become.

    Attributes:
        block: Number of factors in a block.
    """

    block: int = 16

    def step(self, map: Map, state: State) -> tuple[State, Record]:
        """Make a sweep, block by block."""
        V, U, moved, gain = (t.clone() for t in (state.V, state.U, state.V, state.gain))
        b = state.gain.clone()
        order = state.gain.argsort(descending=True, stable=True)
        done = order[:0]
        for rows in torch.split(order, self.block):
            new = state.V[rows]
            if len(done):
                basis = orthogonalise(moved[done], "qr")
                for _ in range(2):
                    new = new - new @ basis.T @ basis
            V[rows] = orthogonalise(unit(new), "qr")
            D, gradient = map.value_and_vjp(self.scale * V[rows], lambda D, _: unit(D))
            U[rows], b[rows] = unit(D), D.norm(dim=-1)
            gain[rows] = self.scale * gradient.norm(dim=-1)
            moved[rows] = unit(gradient, fallback=V[rows])
            done = torch.cat([done, rows])
        factors = fit_strengths(V, U, b, "exponential", nonnegative=self.nonnegative)
        return State(moved, U, gain, factors), {}


@dataclass(frozen=True)
class Started(Exponential):
    """Other starts.

    Attributes:
        how: ``"random"`` rows, or ``"wide"``: as many projections as factors.
    """

    how: str = "random"

    def init(self, map: Map, generator: torch.Generator) -> Any:
        """Directions to start from."""
        m = self.num_factors
        if self.how == "random":
            V = random_rows(m, map.d_source, generator)
        else:
            V = projected_start(require_smooth(map), m, generator, m)
        return State(V, torch.zeros(m, map.d_target), torch.ones(m))
