"""What every method asks of a map Δ: its value and its first and second derivatives, many directions at a time.

A map is a sum (or a concatenation) of *pieces*, one for each batch of prompts. The oracles stream over the pieces and cut the directions
into chunks, so memory depends neither on how many prompts nor on how many directions there are.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from .errors import MelboError
from .linalg import random_rows, unit

Function = Callable[[Tensor], Tensor]
Derivative = Callable[..., Tensor]  # (fn, where, *rows) -> rows


@dataclass(frozen=True)
class Piece:
    """One differentiable part of a map."""

    fn: Function  # [k, d_source] -> [k, width of columns], rows independent, zero at zero
    columns: slice | Tensor  # which part of the response it adds to
    cost: int  # tokens that one direction runs through the blocks


class Map(ABC):
    """Δ: ``[k, d_source] → [k, d_target]``, one perturbation a row, with Δ(0) = 0.

    Attributes:
        d_source: Width of a perturbation.
        d_target: Width of a response.
        dtype: In which directions come and responses go.
        device: Where they live.
        tokens_per_pass: How many tokens run through the blocks at a time; sets the chunk of directions.
        source_norm: Typical norm of what is perturbed, or None where nothing is known of it.
        parts: Widths of the parts of a perturbation that are kept at equal norms; none where it is one vector.
    """

    d_source: int
    d_target: int
    dtype: torch.dtype
    device: torch.device
    tokens_per_pass: int
    source_norm: float | None = None
    parts: tuple[int, ...] = ()
    _shares_zero: bool = True

    @property
    def response_shape(self) -> tuple[int, int, int]:
        """Prompts, tokens and channels; one prompt and one token unless told otherwise."""
        return 1, 1, self.d_target

    @property
    @abstractmethod
    def pieces(self) -> Sequence[Piece]:
        """The parts that make up the map."""

    def unit(self, rows: Tensor, fallback: Tensor | None = None) -> Tensor:
        """Rows ``[k, d_source]`` at norm 1, their `parts` at equal norms; what is zero is taken from ``fallback`` (see `melbo.linalg.unit`)."""
        if not self.parts:
            return unit(rows, fallback)
        old: Sequence[Tensor | None] = [None] * len(self.parts) if fallback is None else fallback.split(self.parts, -1)
        new = [unit(part, before) for part, before in zip(rows.split(self.parts, -1), old, strict=True)]
        return unit(torch.cat([unit(part) for part in new], -1))

    def opposite(self, rows: Tensor) -> Tensor:
        """What pushes the other way, ``[k, d_source]``."""
        return -rows

    def probes(self, num: int, generator: torch.Generator) -> Tensor:
        """Unit directions ``[num, d_source]`` that stand for all where a scale is calibrated: random ones."""
        return random_rows(num, self.d_source, generator).to(self.device, self.dtype)

    def backward(self, U: Tensor, scale: float, generator: torch.Generator) -> Tensor:
        """Gradients to start from, for output directions ``[k, d_target]``: J(0)ᵀu."""
        return self.vjp(U)

    def describe(self) -> dict:
        """What a run folder keeps of the map (JSON-able)."""
        return {"kind": type(self).__name__, "d_source": self.d_source, "d_target": self.d_target}

    def locate_nonfinite(self, theta: Tensor) -> str:
        """Where the response to ``theta`` ``[1, d_source]`` first stops being finite, in words."""
        return "the response"

    def chunks(self, k: int) -> Iterator[tuple[Piece, slice]]:
        """What ``k`` directions are cut into: every piece with every range of rows that it takes in one pass."""
        for piece in self.pieces:
            for rows in self._cut(k, piece.cost):
                yield piece, rows

    def value(self, theta: Tensor) -> Tensor:
        """Δ(θ), ``[k, d_source] → [k, d_target]``."""
        theta = self._rows(theta)
        out = theta.new_zeros(len(theta), self.d_target)
        with torch.no_grad():
            for piece, rows in self.chunks(len(theta)):
                out[rows, piece.columns] += piece.fn(theta[rows])
        return out

    def value_and_vjp(self, theta: Tensor, cotangent: Tensor | Callable[[Tensor, slice], Tensor]) -> tuple[Tensor, Tensor]:
        """Δ(θ) and J(θ)ᵀu, row by row: ``[k, d_target]`` and ``[k, d_source]``.

        Args:
            theta: Perturbations ``[k, d_source]``.
            cotangent: ``u`` ``[k, d_target]``, or a function that gives it for some rows, from their values and which rows they are. With a function,
                the forward passes of all pieces are kept until it can be evaluated (Gauss–Seidel at no extra cost); where those would not fit
                one pass, the value is computed beforehand.
        """
        theta = self._rows(theta)
        if callable(cotangent):
            if self._cost <= self.tokens_per_pass:
                return self._joint_vjp(theta, cotangent)
            cotangent = cotangent(self.value(theta), slice(None))
        return self._streamed_vjp(theta, self._columns(cotangent, len(theta)))

    def _joint_vjp(self, theta: Tensor, cotangent: Callable[[Tensor, slice], Tensor]) -> tuple[Tensor, Tensor]:
        value, gradient = theta.new_zeros(len(theta), self.d_target), torch.zeros_like(theta)
        for rows in self._cut(len(theta), self._cost):
            point = theta[rows].detach().requires_grad_()
            with torch.enable_grad():
                parts = [piece.fn(point) for piece in self.pieces]
            for piece, part in zip(self.pieces, parts, strict=True):
                value[rows, piece.columns] += part.detach()
            u = cotangent(value[rows], rows)
            gradient[rows] = torch.autograd.grad(parts, point, [u[:, p.columns] for p in self.pieces], materialize_grads=True)[0]
        return value, gradient

    def _streamed_vjp(self, theta: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = theta.new_zeros(len(theta), self.d_target), torch.zeros_like(theta)
        for piece, rows in self.chunks(len(theta)):
            point = theta[rows].detach().requires_grad_()
            with torch.enable_grad():
                part = piece.fn(point)
            value[rows, piece.columns] += part.detach()
            gradient[rows] += torch.autograd.grad(part, point, u[rows, piece.columns], materialize_grads=True)[0]
        return value, gradient

    def vjp(self, u: Tensor) -> Tensor:
        """J(0)ᵀu, ``[k, d_target] → [k, d_source]``: at half the price of `value_and_vjp`, one forward pass serving every row."""
        u = self._columns(u, len(u))
        out = u.new_zeros(len(u), self.d_source)
        with self._forward_mode():
            for piece, rows in self.chunks(len(u)):
                out[rows] += self._at_zero(piece.fn, _pull, u[rows, piece.columns], plain=_gradient)
        return out

    def jvp(self, v: Tensor) -> Tensor:
        """J(0)v, ``[k, d_source] → [k, d_target]``, exact (forward mode)."""
        v = self._rows(v)
        out = v.new_zeros(len(v), self.d_target)
        with self._forward_mode():
            for piece, rows in self.chunks(len(v)):
                out[rows, piece.columns] += self._at_zero(piece.fn, _push, v[rows])
        return out

    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        """H(u, v, ·), ``[k, d_target] × [k, d_source] → [k, d_source]``: the gradient at 0 of ⟨u, J(θ)v⟩, exact (forward over reverse)."""
        v = self._rows(v)
        u = self._columns(u, len(v))
        out = torch.zeros_like(v)
        with self._forward_mode():
            for piece, rows in self.chunks(len(v)):
                out[rows] += self._at_zero(piece.fn, _push_pull, u[rows, piece.columns], v[rows])
        return out

    def bilinear(self, v: Tensor, w: Tensor) -> Tensor:
        """H(·, v, w) = ∂²/∂a∂b Δ(av + bw) at 0, ``[k, d_source]² → [k, d_target]``, exact (forward over forward)."""
        v, w = self._rows(v), self._rows(w)
        out = v.new_zeros(len(v), self.d_target)
        with self._forward_mode():
            for piece, rows in self.chunks(len(v)):
                out[rows, piece.columns] += self._at_zero(piece.fn, _push_push, v[rows], w[rows])
        return out

    def square_hvp(self, v: Tensor) -> Tensor:
        """∇²‖Δ‖²(0) v, ``[k, d_source] → [k, d_source]``, exact (forward over reverse).

        Raises:
            MelboError: Several pieces add to the same part of the response, so that ‖Δ‖² is not the sum of theirs.
        """
        if len(self.pieces) > 1 and sum(self._width(piece) for piece in self.pieces) > self.d_target:
            raise MelboError("the square of an average over several prompts does not split over them: make the map with concatenate=True")
        v = self._rows(v)
        out = torch.zeros_like(v)
        with self._forward_mode():
            for piece, rows in self.chunks(len(v)):
                out[rows] += self._at_zero(partial(_square, piece.fn), _push_gradient, v[rows])
        return out

    def _width(self, piece: Piece) -> int:
        return len(torch.arange(self.d_target)[piece.columns.cpu() if isinstance(piece.columns, Tensor) else piece.columns])

    def _at_zero(self, fn: Function, derivative: Derivative, *rows: Tensor, plain: Derivative | None = None) -> Tensor:
        """``derivative`` of ``fn`` at θ = 0 for every row.

        All rows share the point, so what depends on it alone is computed once (by ``vmap``); a function that does not take this is
        given as many zeros as there are rows, and its ``plain`` derivative taken.
        """
        zero = torch.zeros(len(rows[0]), self.d_source, dtype=self.dtype, device=self.device)
        if self._shares_zero:
            try:
                return torch.func.vmap(partial(derivative, lambda theta: fn(theta[None])[0], zero[0]))(*rows)
            except (torch.OutOfMemoryError, MelboError):
                raise
            except Exception:  # vmap refuses in many ways; where the fault is another, the plain way raises it
                self._shares_zero = False
        return (plain or derivative)(fn, zero, *rows)

    @contextlib.contextmanager
    def _forward_mode(self) -> Iterator[None]:
        """Forward mode and second derivatives exist for the plain attention kernel only, and are right for plain layer norms only.

        Raises:
            MelboError: Something in the map cannot be differentiated in forward mode at all.
        """
        with sdpa_kernel([SDPBackend.MATH]), _PlainLayerNorm():
            try:
                yield
            except (RuntimeError, NotImplementedError) as err:
                if not any(sign in str(err) for sign in ("setup_context", "forward AD", "forward-mode AD")):
                    raise
                raise MelboError(
                    f"this map cannot be differentiated in forward mode ({str(err).splitlines()[0][:80]}): "
                    "use the exponential method, and give a scale"
                ) from err

    @property
    def _cost(self) -> int:
        """Tokens that one direction runs through the blocks in all pieces together."""
        return sum(piece.cost for piece in self.pieces)

    def _cut(self, k: int, cost: int) -> Iterator[slice]:
        most = max(1, self.tokens_per_pass // cost)
        number = -(-k // most)
        for i in range(number):  # as equal as can be: a small last chunk would run at a poor rate
            yield slice(i * k // number, (i + 1) * k // number)

    def _rows(self, theta: Tensor) -> Tensor:
        if theta.ndim != 2 or theta.shape[-1] != self.d_source:
            raise MelboError(f"got directions of shape {tuple(theta.shape)}, expected [k, {self.d_source}]: one direction a row")
        return theta.to(self.device, self.dtype)

    def _columns(self, u: Tensor, k: int) -> Tensor:
        if u.shape != (k, self.d_target):
            raise MelboError(f"got output directions of shape {tuple(u.shape)}, expected [{k}, {self.d_target}]: one for each input direction")
        return u.to(self.device, self.dtype)


class FunctionMap(Map):
    """Any differentiable torch function as a map, so that every method runs, and is tested, without a language model.

    Args:
        fn: ``[k, d_source] → [k, d_target]``, rows independent, ``fn(0) = 0``.
        d_source: Width of a perturbation.
        d_target: Width of a response.
        dtype: In which ``fn`` computes.
        chunk: How many rows to hand to ``fn`` at a time.
        device: Where ``fn`` computes.
        parts: See `Map`.

    Raises:
        MelboError: ``fn(0)`` has the wrong shape or is not zero.
    """

    def __init__(
        self,
        fn: Callable[[Tensor], Tensor],
        d_source: int,
        d_target: int,
        dtype: torch.dtype = torch.float32,
        chunk: int = 1024,
        device: str = "cpu",
        parts: Sequence[int] = (),
    ) -> None:
        self.d_source, self.d_target, self.dtype, self.tokens_per_pass = d_source, d_target, dtype, chunk
        self.device = torch.device(device)
        self.fn, self.parts = fn, tuple(parts)
        with torch.no_grad():
            at_zero = fn(torch.zeros(1, d_source, dtype=dtype, device=self.device))
        if at_zero.shape != (1, d_target):
            raise MelboError(f"fn maps [1, {d_source}] to {tuple(at_zero.shape)}, expected [1, {d_target}]")
        if not at_zero.abs().max() <= 1e-6:
            raise MelboError(f"fn(0) has norm {at_zero.norm():.2g}, expected 0: subtract the unperturbed response")

    @property
    def pieces(self) -> Sequence[Piece]:
        """The function, as one piece."""
        return [Piece(self.fn, slice(0, self.d_target), 1)]


def _gradient(fn: Function, at: Tensor, u: Tensor) -> Tensor:
    """J(θ)ᵀu, by plain reverse mode."""
    point = at.requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(fn(point), point, u, materialize_grads=True)[0]


def _push(fn: Function, at: Tensor, v: Tensor) -> Tensor:
    """J(θ)v."""
    return torch.func.jvp(fn, (at,), (v,))[1]


def _pull(fn: Function, at: Tensor, u: Tensor) -> Tensor:
    """J(θ)ᵀu."""
    return torch.func.vjp(fn, at)[1](u)[0]


def _push_pull(fn: Function, at: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Derivative along v of J(θ)ᵀu."""
    return _push(lambda theta: _pull(fn, theta, u), at, v)


def _square(fn: Function, theta: Tensor) -> Tensor:
    """‖fn(θ)‖² ``[k, 1]``."""
    return fn(theta).square().sum(-1, keepdim=True)


def _push_gradient(fn: Function, at: Tensor, v: Tensor) -> Tensor:
    """Derivative along v of the gradient of ``fn``, of one column."""
    return _push(lambda theta: _pull(fn, theta, torch.ones_like(theta[..., :1])), at, v)


def _push_push(fn: Function, at: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """Derivative along v of J(θ)w."""
    return _push(lambda theta: _push(fn, theta, w), at, v)


class _PlainLayerNorm(TorchFunctionMode):
    """Layer norms written out: torch's own rule is silently wrong when forward mode is nested (pytorch/pytorch#196700)."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.layer_norm:
            return _layer_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    axes = list(range(-len(normalized_shape), 0))
    x = input.to(torch.promote_types(input.dtype, torch.float32))
    centred = x - x.mean(axes, keepdim=True)
    x = (centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + eps)).to(input.dtype)
    x = x if weight is None else x * weight
    return x if bias is None else x + bias
