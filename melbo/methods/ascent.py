"""Gradient ascent on the sphere: the original MELBO objective, and other vectors with the effect of a given one (METHOD §6)."""

import math
from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from melbo.errors import MelboError
from melbo.maps.base import Map
from melbo.maths.linalg import random_rows, unit
from melbo.maths.transcoder import Factors, exponential_factors
from melbo.methods.base import Iterative
from melbo.methods.iterate import Record

_BETAS = (0.9, 0.98)


@dataclass(frozen=True)
class _State:
    """A batch that is being trained, and those before it."""

    V: Tensor  # [b, d_source], unit rows
    D: Tensor  # [b, d_target], what they did at the last step
    moments: "_Moments"
    V_done: Tensor  # [i, d_source]
    D_done: Tensor  # [i, d_target]
    excluded: Tensor  # [e, d_source], orthonormal rows: what is done, and what else vectors stay orthogonal to
    aim: Tensor  # what the objective compares with, [0 or 1, d_target]
    generator: torch.Generator
    found: Factors | None = None


class _Moments(NamedTuple):
    """Of the gradients of a batch, ``[b, d_source]`` each, and how many there were."""

    mean: Tensor
    square: Tensor
    most: Tensor  # the largest ``square`` so far (amsgrad)
    steps: int


@dataclass(frozen=True)
class Ascent(Iterative):
    """Unit rows v that maximise an objective F of Δ(Rv), by Adam (amsgrad) on the sphere of radius R.

    ``together`` vectors are trained in one batch, each batch orthogonal to those before it; within a batch a penalty keeps vectors apart.
    With ``together=1`` this is one vector after the other, as published. What is maximised is Σᵢ log Fᵢ − μ Σ_{i<j} ⟨vᵢ, vⱼ⟩²: F has the
    maxima of log F, and the penalty no units.

    Attributes:
        num_factors: m ≤ d_source.
        scale: R.
        steps: Of each vector.
        together: How many vectors are trained in one batch.
        penalty: μ.
        learning_rate: Of an entry, in units of its typical size R/√d. (The published 1e-3 at R = 8, d = 2048 is .006.)
    """

    steps: int = 300
    together: int = 16
    penalty: float = 1.0
    learning_rate: float = 0.006
    tol: float = field(default=0.0, init=False)  # the number of steps is all that ends it

    @property
    def max_steps(self) -> int:
        """Steps of all batches."""
        return self.steps * math.ceil(self.num_factors / self.together)

    def check(self, map: Map) -> None:
        """See `Method.check`; also m ≤ d_source and settings that make sense."""
        if (
            self.steps < 1
            or self.together < 1
            or not self.penalty >= 0
            or not self.learning_rate > 0
        ):
            raise MelboError(
                f"got steps={self.steps}, together={self.together}, penalty={self.penalty}, learning_rate={self.learning_rate}: "
                "expected at least 1, 1 and 0, and more than 0"
            )
        super().check(map)
        self.check_room(map.d_source - len(self.avoid(map)), "batches are kept orthogonal and")

    @abstractmethod
    def objective(self, map: Map, D: Tensor, aim: Tensor) -> Tensor:
        """F > 0 of responses, ``[k, d_target] → [k]``."""

    def avoid(self, map: Map) -> Tensor:
        """Orthonormal rows that every vector stays orthogonal to."""
        return torch.zeros(0, map.d_source, device=map.device, dtype=map.dtype)

    def init(self, map: Map, generator: torch.Generator) -> _State:
        """The first batch, at random."""
        excluded = self.avoid(map)
        V = self._start(excluded, self.num_factors, generator)
        none = excluded[:0]
        nothing = none.new_zeros(0, map.d_target)
        aim = map.value(self.scale * excluded)
        return _State(
            V,
            V.new_zeros(len(V), map.d_target),
            _no_moments(V),
            none,
            nothing,
            excluded,
            aim,
            generator,
        )

    def step(self, map: Map, state: _State) -> tuple[_State, Record]:
        """One step of every vector of the batch."""
        V = state.V
        reached: list[Tensor] = []

        def cotangent(D: Tensor, rows: slice) -> Tensor:
            with torch.enable_grad():
                point = D.detach().requires_grad_()
                value = self.objective(map, point, state.aim)
                reached.append(value.detach())
                return torch.autograd.grad(value.log().sum(), point)[0]

        D, pull = map.value_and_vjp(self.scale * V, cotangent)
        cosine = V @ V.T
        apart = (cosine - torch.diag(cosine.diagonal())) @ V
        gradient = self.scale * pull - 2 * self.penalty * apart
        gradient = gradient - (gradient * V).sum(-1, keepdim=True) * V
        gradient = gradient - gradient @ state.excluded.T @ state.excluded
        moments, move = _adam(state.moments, gradient)
        moved = V + self.learning_rate * V.shape[1] ** -0.5 * move
        moved = unit(moved - moved @ state.excluded.T @ state.excluded, fallback=V)

        found = _factors(torch.cat([state.V_done, V]), torch.cat([state.D_done, D]))
        record = {
            "objective": torch.cat(reached).mean().item(),
            "explained": found.explained,
            "change": (1 - (moved * V).sum(-1)).max().clamp_min(0).item(),
        }
        following = replace(state, V=moved, D=D, moments=moments, found=found)
        left = self.num_factors - len(state.V_done) - len(V)
        return (
            self._next_batch(following, left) if moments.steps == self.steps and left else following
        ), record

    def finish(self, map: Map, state: _State) -> Factors:
        """What the final vectors do: U along it."""
        V = state.V_done if state.moments.steps == 0 else torch.cat([state.V_done, state.V])
        return _factors(V, map.value(self.scale * V))

    def _next_batch(self, state: _State, left: int) -> _State:
        inside = state.V - state.V @ state.excluded.T @ state.excluded
        excluded = torch.cat([state.excluded, torch.linalg.qr(inside.T)[0].T])
        V = self._start(excluded, left, state.generator)
        done = torch.cat([state.V_done, state.V]), torch.cat([state.D_done, state.D])
        return replace(
            state,
            V=V,
            D=state.D.new_zeros(len(V), state.D.shape[1]),
            moments=_no_moments(V),
            V_done=done[0],
            D_done=done[1],
            excluded=excluded,
        )

    def _start(self, excluded: Tensor, left: int, generator: torch.Generator) -> Tensor:
        V = random_rows(min(self.together, left), excluded.shape[1], generator).to(excluded)
        return unit(V - V @ excluded.T @ excluded)


@dataclass(frozen=True)
class Melbo(Ascent):
    """The original objective: F(θ) = Σ_prompts (Σ_tokens ‖Δ(θ)‖^p)^{1/q}, the norm over channels.

    On a map with ``concatenate=True`` prompts and tokens are told apart; on an averaged one, F is ‖Δ‖^{p/q}.

    Attributes:
        p: 2, or more to favour a few tokens that change much.
        q: 1 or p; p if left out.
    """

    p: int = 2
    q: int | None = None

    def check(self, map: Map) -> None:
        """See `Ascent.check`; also p ≥ 2 and q ≥ 1."""
        super().check(map)
        if self.p < 2 or (self.q is not None and self.q < 1):
            raise MelboError(
                f"got p={self.p}, q={self.q}: expected p of at least 2, and q of 1 or p"
            )

    def objective(self, map: Map, D: Tensor, aim: Tensor) -> Tensor:
        """See the class."""
        squares = D.unflatten(-1, map.response_shape).square().sum(-1)  # [k, prompts, tokens]
        inside = squares.pow(self.p / 2).sum(-1)
        return inside.pow(1 / (self.q or self.p)).sum(-1)


@dataclass(frozen=True)
class Alike(Ascent):
    """More vectors with the effect of a given one, orthogonal to it and to each other: F(θ) = 1 / (‖Δ(θ) − Δ(R·like)‖² / ‖Δ(R·like)‖² + ε).

    This is how more than eight hundred orthogonal "write code" vectors were found.

    Attributes:
        like: The given direction, ``d_source`` numbers.
        together: One after the other by default, so that all are orthogonal.
    """

    together: int = 1
    like: tuple[float, ...] = field(default=(), repr=False)

    def check(self, map: Map) -> None:
        """See `Ascent.check`; also a direction of the right width."""
        if len(self.like) != map.d_source or not any(self.like):
            raise MelboError(
                f"got like with {len(self.like)} numbers, expected a direction of {map.d_source}: tuple(bank.V[3].tolist())"
            )
        super().check(map)

    def describe(self) -> dict:
        """See `Method.describe`; the direction itself left out."""
        return {name: value for name, value in super().describe().items() if name != "like"}

    def avoid(self, map: Map) -> Tensor:
        """The given direction."""
        return unit(torch.tensor([self.like], device=map.device, dtype=map.dtype))

    def objective(self, map: Map, D: Tensor, aim: Tensor) -> Tensor:
        """See the class."""
        return 1 / ((D - aim).square().sum(-1) / aim.square().sum(-1) + 1e-3)


def _no_moments(V: Tensor) -> _Moments:
    zero = torch.zeros_like(V)
    return _Moments(zero, zero, zero, 0)


def _adam(before: _Moments, gradient: Tensor) -> tuple[_Moments, Tensor]:
    """The moments with one more gradient, and the step in units of the learning rate (Reddi et al. 2018)."""
    count = before.steps + 1
    mean = _BETAS[0] * before.mean + (1 - _BETAS[0]) * gradient
    square = _BETAS[1] * before.square + (1 - _BETAS[1]) * gradient.square()
    most = torch.maximum(before.most, square)
    size = (most / (1 - _BETAS[1] ** count)).sqrt().clamp_min(torch.finfo(gradient.dtype).tiny)
    return _Moments(mean, square, most, count), mean / (1 - _BETAS[0] ** count) / size


def _factors(V: Tensor, D: Tensor) -> Factors:
    return exponential_factors(V, D)
