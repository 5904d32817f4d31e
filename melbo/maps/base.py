"""Δ as methods see it: a map from perturbations to responses, many directions at a time.

A map is a sum (or a concatenation) of *pieces*, one for each group of prompts. Oracles stream over
the pieces and cut the directions into chunks, so memory depends neither on the number of prompts
nor on the number of directions.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from melbo.errors import MelboError
from melbo.maths.linalg import random_rows, unit

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Piece:
    """One differentiable part of a map.

    Attributes:
        fn: ``[k, d_source] → [k, width of columns]``, rows independent, zero at zero.
        columns: Part of the response that the piece adds to.
        cost: Tokens that one direction runs through the blocks.
    """

    fn: Function
    columns: slice | Tensor
    cost: int


class Map(ABC):
    """Δ: ``[k, d_source] → [k, d_target]``, one perturbation a row, with Δ(0) = 0.

    This much is true of every map; `melbo.maps.smooth.SmoothMap` adds derivatives at zero.

    Attributes:
        d_source: Width of a perturbation.
        d_target: Width of a response.
        dtype: Type of directions and responses.
        device: Where directions and responses live.
        tokens_per_pass: Tokens that run through the blocks at a time; sets the chunk of directions.
        source_norm: Typical norm of what is perturbed, or None where nothing is known of it.
        parts: Widths of the parts of a perturbation that are kept at equal norms; none where it is
            one vector.
        passes: Passes of one direction through the map so far: a forward pass, one with tangents
            and a backward pass count the same.
    """

    d_source: int
    d_target: int
    dtype: torch.dtype
    device: torch.device
    tokens_per_pass: int
    source_norm: float | None = None
    parts: tuple[int, ...] = ()
    passes: int = 0

    @property
    def response_shape(self) -> tuple[int, int, int]:
        """Prompts, tokens and channels that the response keeps apart; product ``d_target``."""
        return 1, 1, self.d_target

    @property
    @abstractmethod
    def pieces(self) -> Sequence[Piece]:
        """The parts that make up the map."""

    def unit(self, rows: Tensor, fallback: Tensor | None = None) -> Tensor:
        """Rows at norm 1, their `parts` at equal norms, ``[k, d_source]``.

        Args:
            rows: Rows ``[k, d_source]``.
            fallback: Rows ``[k, d_source]`` that take the place of rows (or parts) that are zero
                (see `melbo.maths.linalg.unit`).
        """
        if not self.parts:
            return unit(rows, fallback)
        old: Sequence[Tensor | None] = [None] * len(self.parts)
        if fallback is not None:
            old = torch.split(fallback, list(self.parts), -1)
        pairs = zip(torch.split(rows, list(self.parts), -1), old, strict=True)
        new = [unit(part, before) for part, before in pairs]
        return unit(torch.cat([unit(part) for part in new], -1))

    def opposite(self, rows: Tensor) -> Tensor:
        """Perturbations that push in the opposite direction, ``[k, d_source]``."""
        return -rows

    def probes(self, num: int, generator: torch.Generator) -> Tensor:
        """Unit directions ``[num, d_source]`` that calibration takes as typical: random ones.

        Args:
            num: Number of directions.
            generator: Source of everything random.
        """
        return random_rows(num, self.d_source, generator).to(self.device, self.dtype)

    @abstractmethod
    def backward(self, U: Tensor, scale: float, generator: torch.Generator) -> Tensor:
        """Gradients of ⟨u, Δ⟩ that methods start from, ``[k, d_source]``.

        Args:
            U: Output directions ``[k, d_target]``.
            scale: R, where the gradient is taken at a point other than zero.
            generator: Source of everything random.
        """

    @abstractmethod
    def jvp(self, v: Tensor) -> Tensor:
        """d/dt Δ(t·v) at t = 0, ``[k, d_source] → [k, d_target]``, exact (forward mode)."""

    def describe(self) -> dict[str, Any]:
        """Kind, widths and settings, as a run folder keeps them (JSON-able)."""
        return {
            "kind": type(self).__name__,
            "d_source": self.d_source,
            "d_target": self.d_target,
        }

    def locate_nonfinite(self, theta: Tensor) -> str:
        """Name the place where the response to ``theta`` ``[1, d_source]`` stops being finite."""
        return "the response"

    def chunks(self, k: int) -> Iterator[tuple[Piece, slice]]:
        """Every piece with every range of ``k`` directions that it takes in one pass."""
        for piece in self.pieces:
            for rows in self._cut(k, piece.cost):
                yield piece, rows

    def value(self, theta: Tensor) -> Tensor:
        """Δ(θ), ``[k, d_source] → [k, d_target]``."""
        theta = self._rows(theta)
        self.passes += len(theta)
        return self._value(theta)

    def _value(self, theta: Tensor) -> Tensor:
        out = theta.new_zeros(len(theta), self.d_target)
        with torch.no_grad():
            for piece, rows in self.chunks(len(theta)):
                out[rows, piece.columns] += piece.fn(theta[rows])
        return out

    def value_and_vjp(
        self, theta: Tensor, cotangent: Tensor | Callable[[Tensor, slice], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Δ(θ) and J(θ)ᵀu, row by row: ``[k, d_target]`` and ``[k, d_source]``.

        Args:
            theta: Perturbations ``[k, d_source]``.
            cotangent: ``u`` ``[k, d_target]``, or a function of some rows' values and of the slice
                that these rows are, which gives their ``u``. With a function, the forward passes of
                all pieces are kept until it can be evaluated (Gauss–Seidel at no extra cost); where
                they would not fit one pass, the value is computed beforehand.
        """
        theta = self._rows(theta)
        self.passes += 2 * len(theta)
        if callable(cotangent):
            if self._cost <= self.tokens_per_pass:
                return self._joint_vjp(theta, cotangent)
            cotangent = cotangent(self._value(theta), slice(None))
        return self._streamed_vjp(theta, self._columns(cotangent, len(theta)))

    def _joint_vjp(
        self, theta: Tensor, cotangent: Callable[[Tensor, slice], Tensor]
    ) -> tuple[Tensor, Tensor]:
        value = theta.new_zeros(len(theta), self.d_target)
        gradient = torch.zeros_like(theta)
        for rows in self._cut(len(theta), self._cost):
            point = theta[rows].detach().requires_grad_()
            with torch.enable_grad():
                parts = [piece.fn(point) for piece in self.pieces]
            for piece, part in zip(self.pieces, parts, strict=True):
                value[rows, piece.columns] += part.detach()
            u = cotangent(value[rows], rows)
            of_parts = [u[:, piece.columns] for piece in self.pieces]
            gradient[rows] = torch.autograd.grad(parts, point, of_parts, materialize_grads=True)[0]
        return value, gradient

    def _streamed_vjp(self, theta: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        value = theta.new_zeros(len(theta), self.d_target)
        gradient = torch.zeros_like(theta)
        for piece, rows in self.chunks(len(theta)):
            point = theta[rows].detach().requires_grad_()
            with torch.enable_grad():
                part = piece.fn(point)
            value[rows, piece.columns] += part.detach()
            of_part = u[rows, piece.columns]
            gradient[rows] += torch.autograd.grad(part, point, of_part, materialize_grads=True)[0]
        return value, gradient

    @property
    def _cost(self) -> int:
        """Tokens that one direction runs through the blocks in all pieces together."""
        return sum(piece.cost for piece in self.pieces)

    def _cut(self, k: int, cost: int) -> Iterator[slice]:
        most = max(1, self.tokens_per_pass // cost)
        number = -(-k // most)
        # as equal as can be: a small last chunk would run at a poor rate
        for i in range(number):
            yield slice(i * k // number, (i + 1) * k // number)

    def _rows(self, theta: Tensor) -> Tensor:
        if theta.ndim != 2 or theta.shape[-1] != self.d_source:
            raise MelboError(
                f"got directions of shape {tuple(theta.shape)}, "
                f"expected [k, {self.d_source}]: one direction a row"
            )
        return theta.to(self.device, self.dtype)

    def _columns(self, u: Tensor, k: int) -> Tensor:
        if u.shape != (k, self.d_target):
            raise MelboError(
                f"got output directions of shape {tuple(u.shape)}, "
                f"expected [{k}, {self.d_target}]: one for each input direction"
            )
        return u.to(self.device, self.dtype)
