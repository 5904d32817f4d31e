"""Gradient ascent on the sphere (docs/method.md §6).

`Melbo` climbs the original objective, `Alike` finds other vectors with the effect of a given one.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from melbo.errors import MelboError
from melbo.maps.base import Map
from melbo.maths.linalg import random_rows, unit
from melbo.maths.transcoder import Factors, exponential_factors
from melbo.methods.base import Iterative
from melbo.methods.iterate import Record

_BETAS = (0.9, 0.98)


class _Moments(NamedTuple):
    """Moments of the gradients of a batch, ``[b, d_source]`` each.

    Attributes:
        mean: Running mean of the gradients.
        square: Running mean of their squares.
        most: Largest ``square`` so far (amsgrad).
        steps: Number of gradients.
    """

    mean: Tensor
    square: Tensor
    most: Tensor
    steps: int


@dataclass(frozen=True)
class _State:
    """A batch in training, and the batches before it.

    Attributes:
        V: Unit rows of the batch ``[b, d_source]``.
        D: Their responses at the last step ``[b, d_target]``.
        moments: Moments of their gradients.
        V_done: Rows of the batches before ``[i, d_source]``.
        D_done: Their responses ``[i, d_target]``.
        excluded: Orthonormal rows ``[e, d_source]`` that the batch stays orthogonal to: the batches
            before, and `Ascent.avoid`.
        aim: Response that the objective compares with ``[0 or 1, d_target]``.
        generator: Source of randomness.
        found: Factors that the last step evaluated.
    """

    V: Tensor
    D: Tensor
    moments: _Moments
    V_done: Tensor
    D_done: Tensor
    excluded: Tensor
    aim: Tensor
    generator: torch.Generator
    found: Factors | None = None


@dataclass(frozen=True)
class Ascent(Iterative):
    """Unit rows v that maximise an objective F of Δ(Rv), by Adam (amsgrad) on the sphere.

    Vectors are trained in batches, each batch orthogonal to the batches before it. Within a batch a
    penalty keeps vectors apart: Σᵢ log Fᵢ − μ Σ_{i<j} ⟨vᵢ, vⱼ⟩² is maximised. log F has the maxima
    of F, and with it the penalty needs no units. ``batch_size=1`` trains one vector after the
    other, as published.

    Attributes:
        num_factors: m ≤ d_source.
        scale: R.
        steps: Steps for each vector.
        batch_size: Number of vectors trained in one batch.
        penalty: μ.
        learning_rate: Step of an entry of Rv, in units of its typical size R/√d. (The published
            1e-3 at R = 8, d = 2048 is .006.)
    """

    steps: int = 300
    batch_size: int = 16
    penalty: float = 1.0
    learning_rate: float = 0.006
    # the number of steps is all that ends it
    tol: float = field(default=0.0, init=False)

    @property
    def max_steps(self) -> int:
        """Steps of all batches."""
        return self.steps * math.ceil(self.num_factors / self.batch_size)

    def check(self, map: Map) -> None:
        """Refuse settings that cannot work on this map (see `Method.check`).

        Raises:
            MelboError: A setting is out of range.
        """
        whole = self.steps >= 1 and self.batch_size >= 1
        if not (whole and self.penalty >= 0 and self.learning_rate > 0):
            raise MelboError(
                f"got steps={self.steps}, batch_size={self.batch_size}, penalty={self.penalty}, "
                f"learning_rate={self.learning_rate}: expected steps and batch_size of at least 1, "
                "penalty of at least 0, learning_rate above 0"
            )
        super().check(map)
        self.check_room(map.d_source - len(self.avoid(map)), "batches are kept orthogonal and")

    @abstractmethod
    def objective(self, map: Map, D: Tensor, aim: Tensor) -> Tensor:
        """F > 0 of responses, ``[k]``.

        Args:
            map: Δ.
            D: Responses ``[k, d_target]``.
            aim: Responses to R times the rows of `avoid` ``[0 or 1, d_target]``.
        """

    def avoid(self, map: Map) -> Tensor:
        """Orthonormal rows that every vector stays orthogonal to, ``[0 or 1, d_source]``."""
        return torch.zeros(0, map.d_source, device=map.device, dtype=map.dtype)

    def init(self, map: Map, generator: torch.Generator) -> _State:
        """The first batch, at random."""
        excluded = self.avoid(map)
        V = self._start(excluded, self.num_factors, generator)
        return _State(
            V=V,
            D=V.new_zeros(len(V), map.d_target),
            moments=_no_moments(V),
            V_done=V[:0],
            D_done=V.new_zeros(0, map.d_target),
            excluded=excluded,
            aim=map.value(self.scale * excluded),
            generator=generator,
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
        gradient = _without(gradient, state.excluded)
        moments, move = _adam(state.moments, gradient)
        moved = V + self.learning_rate * V.shape[1] ** -0.5 * move
        moved = unit(_without(moved, state.excluded), fallback=V)

        found = exponential_factors(torch.cat([state.V_done, V]), torch.cat([state.D_done, D]))
        record = {
            "objective": torch.cat(reached).mean().item(),
            "explained": found.explained,
            "change": (1 - (moved * V).sum(-1)).max().clamp_min(0).item(),
        }
        after = replace(state, V=moved, D=D, moments=moments, found=found)
        left = self.num_factors - len(state.V_done) - len(V)
        if moments.steps == self.steps and left:
            after = self._next_batch(after, left)
        return after, record

    def finish(self, map: Map, state: _State) -> Factors:
        """Factors at the final V; a batch without a step is left out, unless it is the first."""
        started = state.moments.steps > 0 or len(state.V_done) == 0
        V = torch.cat([state.V_done, state.V]) if started else state.V_done
        return exponential_factors(V, map.value(self.scale * V))

    def _next_batch(self, state: _State, left: int) -> _State:
        """A new batch, orthogonal to the one that is done; ``left`` vectors are still to come."""
        inside = _without(state.V, state.excluded)
        excluded = torch.cat([state.excluded, torch.linalg.qr(inside.T)[0].T])
        V = self._start(excluded, left, state.generator)
        return replace(
            state,
            V=V,
            D=state.D.new_zeros(len(V), state.D.shape[1]),
            moments=_no_moments(V),
            V_done=torch.cat([state.V_done, state.V]),
            D_done=torch.cat([state.D_done, state.D]),
            excluded=excluded,
        )

    def _start(self, excluded: Tensor, left: int, generator: torch.Generator) -> Tensor:
        """Random unit rows of a batch, orthogonal to the rows of ``excluded``."""
        V = random_rows(min(self.batch_size, left), excluded.shape[1], generator).to(excluded)
        return unit(_without(V, excluded))


@dataclass(frozen=True)
class Melbo(Ascent):
    """The original objective: F(θ) = Σ_prompts (Σ_tokens ‖Δ(θ)‖^p)^{1/q}, norms over channels.

    On a map with ``concatenate=True`` prompts and tokens are told apart; on an averaged one F is
    ‖Δ‖^{p/q}.

    Attributes:
        p: 2, or more to favour a few tokens that change much.
        q: 1 or p; p if left out.
    """

    p: int = 2
    q: int | None = None

    def check(self, map: Map) -> None:
        """Refuse settings that cannot work on this map (see `Ascent.check`).

        Raises:
            MelboError: p < 2 or q < 1.
        """
        super().check(map)
        if self.p < 2 or (self.q is not None and self.q < 1):
            raise MelboError(
                f"got p={self.p}, q={self.q}: expected p of at least 2, and q of 1 or p"
            )

    def objective(self, map: Map, D: Tensor, aim: Tensor) -> Tensor:
        """F of responses (see the class), ``[k]``."""
        squares = D.view(len(D), *map.response_shape).square().sum(-1)  # [k, prompts, tokens]
        inside = squares.pow(self.p / 2).sum(-1)
        total: Tensor = inside.pow(1 / (self.q or self.p)).sum(-1)
        return total


@dataclass(frozen=True)
class Alike(Ascent):
    """More vectors with the effect of a given one, orthogonal to it and to each other.

    They maximise F(θ) = 1 / (‖Δ(θ) − Δ(R·like)‖² / ‖Δ(R·like)‖² + 10⁻³). More than eight hundred
    orthogonal "write code" vectors were found in this way.

    Attributes:
        like: The given direction, ``d_source`` numbers.
        batch_size: 1 by default: vectors of one batch are not orthogonal to each other.
    """

    batch_size: int = 1
    like: tuple[float, ...] = field(default=(), repr=False)

    def check(self, map: Map) -> None:
        """Refuse settings that cannot work on this map (see `Ascent.check`).

        Raises:
            MelboError: ``like`` has the wrong width or is zero.
        """
        if len(self.like) != map.d_source or not any(self.like):
            raise MelboError(
                f"got like with {len(self.like)} numbers, expected a direction of {map.d_source}: "
                "tuple(features.V[3].tolist())"
            )
        super().check(map)

    def describe(self) -> dict[str, Any]:
        """Name and settings without the given direction, JSON-able."""
        return {k: v for k, v in super().describe().items() if k != "like"}

    def avoid(self, map: Map) -> Tensor:
        """The given direction."""
        return unit(torch.tensor([self.like], device=map.device, dtype=map.dtype))

    def objective(self, map: Map, D: Tensor, aim: Tensor) -> Tensor:
        """F of responses (see the class), ``[k]``."""
        return 1 / ((D - aim).square().sum(-1) / aim.square().sum(-1) + 1e-3)


def _without(rows: Tensor, basis: Tensor) -> Tensor:
    """Rows with their parts along orthonormal rows ``basis`` taken off."""
    return rows - rows @ basis.T @ basis


def _no_moments(V: Tensor) -> _Moments:
    zero = torch.zeros_like(V)
    return _Moments(zero, zero, zero, 0)


def _adam(before: _Moments, gradient: Tensor) -> tuple[_Moments, Tensor]:
    """Moments with one more gradient, and the step in units of the learning rate.

    This is Adam with amsgrad (Reddi et al. 2018).
    """
    count = before.steps + 1
    mean = _BETAS[0] * before.mean + (1 - _BETAS[0]) * gradient
    square = _BETAS[1] * before.square + (1 - _BETAS[1]) * gradient.square()
    most = torch.maximum(before.most, square)
    size = (most / (1 - _BETAS[1] ** count)).sqrt().clamp_min(torch.finfo(gradient.dtype).tiny)
    return _Moments(mean, square, most, count), mean / (1 - _BETAS[0] ** count) / size
