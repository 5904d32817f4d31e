"""Derivatives of a map at θ = 0, first and second, exact, many directions at a time."""

import contextlib
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from melbo.errors import MelboError
from melbo.maps.base import Function, Map, Piece

Derivative = Callable[..., Tensor]  # (fn, where, *rows) -> rows


class SmoothMap(Map):
    """A map that is differentiable at θ = 0.

    All rows of an oracle share that point, so what depends on it alone is computed once.
    """

    _shares_zero: bool = True

    def vjp(self, u: Tensor) -> Tensor:
        """J(0)ᵀu, ``[k, d_target] → [k, d_source]``.

        One forward pass serves every row, which halves the price of `value_and_vjp`.
        """
        u = self._columns(u, len(u))
        self.passes += len(u)
        out = u.new_zeros(len(u), self.d_source)
        with self._forward_mode():
            for piece, rows in self.chunks(len(u)):
                of_part = u[rows, piece.columns]
                out[rows] += self._at_zero(piece.fn, _pull, of_part, plain=_gradient)
        return out

    def backward(self, U: Tensor, scale: float, generator: torch.Generator) -> Tensor:
        """See `Map.backward`; J(0)ᵀu."""
        return self.vjp(U)

    def jvp(self, v: Tensor) -> Tensor:
        """J(0)v, ``[k, d_source] → [k, d_target]``, exact (forward mode)."""
        v = self._rows(v)
        self.passes += len(v)
        out = v.new_zeros(len(v), self.d_target)
        with self._forward_mode():
            for piece, rows in self.chunks(len(v)):
                out[rows, piece.columns] += self._at_zero(piece.fn, _push, v[rows])
        return out

    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        """H(u, v, ·), ``[k, d_target] × [k, d_source] → [k, d_source]``.

        That is the gradient at 0 of ⟨u, J(θ)v⟩, exact (forward over reverse).
        """
        v = self._rows(v)
        self.passes += 2 * len(v)
        u = self._columns(u, len(v))
        out = torch.zeros_like(v)
        with self._forward_mode():
            for piece, rows in self.chunks(len(v)):
                of_part = u[rows, piece.columns]
                out[rows] += self._at_zero(piece.fn, _push_pull, of_part, v[rows])
        return out

    def bilinear(self, v: Tensor, w: Tensor) -> Tensor:
        """H(·, v, w) = ∂²/∂a∂b Δ(av + bw) at 0, ``[k, d_source]² → [k, d_target]``.

        Exact (forward over forward).
        """
        v, w = self._rows(v), self._rows(w)
        self.passes += 2 * len(v)
        out = v.new_zeros(len(v), self.d_target)
        with self._forward_mode():
            for piece, rows in self.chunks(len(v)):
                out[rows, piece.columns] += self._at_zero(piece.fn, _push_push, v[rows], w[rows])
        return out

    def square_hvp(self, v: Tensor) -> Tensor:
        """∇²‖Δ‖²(0) v, ``[k, d_source] → [k, d_source]``, exact (forward over reverse).

        Raises:
            MelboError: Several pieces add to the same part of the response, so that ‖Δ‖² is not the
                sum of theirs.
        """
        widths = sum(self._width(piece) for piece in self.pieces)
        if len(self.pieces) > 1 and widths > self.d_target:
            raise MelboError(
                "the square of an average over several prompts does not split over them: "
                "make the map with concatenate=True"
            )
        v = self._rows(v)
        out = torch.zeros_like(v)
        with self._forward_mode():
            for piece, rows in self.chunks(len(v)):
                square = partial(_square, piece.fn)
                out[rows] += self._at_zero(square, _push_gradient, v[rows])
        return out

    def _width(self, piece: Piece) -> int:
        columns = piece.columns
        columns = columns.cpu() if isinstance(columns, Tensor) else columns
        return len(torch.arange(self.d_target)[columns])

    def _at_zero(
        self, fn: Function, derivative: Derivative, *rows: Tensor, plain: Derivative | None = None
    ) -> Tensor:
        """``derivative`` of ``fn`` at θ = 0 for every row.

        ``vmap`` computes once what depends on the point alone. A function that does not take this
        is given as many zeros as there are rows, and its ``plain`` derivative is taken.

        Raises:
            OutOfMemoryError: Memory runs out; no reason to try the plain derivative.
            MelboError: Raised by the function itself.
        """
        zero = torch.zeros(len(rows[0]), self.d_source, dtype=self.dtype, device=self.device)
        if self._shares_zero:
            one_row = partial(derivative, lambda theta: fn(theta[None])[0], zero[0])
            try:
                return torch.func.vmap(one_row)(*rows)
            except (torch.OutOfMemoryError, MelboError):
                raise
            except Exception:
                # vmap refuses in many ways; any other fault comes back from the plain derivative
                self._shares_zero = False
        return (plain or derivative)(fn, zero, *rows)

    @contextlib.contextmanager
    def _forward_mode(self) -> Generator[None, None, None]:
        """Run with what forward mode needs: the plain attention kernel and plain layer norms.

        Raises:
            MelboError: Something in the map cannot be differentiated in forward mode at all.
        """
        with forward_mode():
            yield


def require_smooth(map: Map) -> SmoothMap:
    """Refuse a map that has no derivatives at zero, and hand back any other.

    Raises:
        MelboError: It has none.
    """
    if not isinstance(map, SmoothMap):
        raise MelboError(
            f"a map of the kind {type(map).__name__} has no Jacobian at zero: "
            "use CPE, or a map of directions"
        )
    return map


@contextlib.contextmanager
def forward_mode() -> Generator[None, None, None]:
    """Make forward mode and second derivatives work inside the ``with`` block.

    They exist for the plain attention kernel only, and are right for plain layer norms only.

    Raises:
        MelboError: Something inside cannot be differentiated in forward mode at all.
        RuntimeError: Raised inside, for any other reason.
    """
    with sdpa_kernel([SDPBackend.MATH]), _PlainLayerNorm():
        try:
            yield
        except (RuntimeError, NotImplementedError) as err:
            signs = ("setup_context", "forward AD", "forward-mode AD")
            if not any(sign in str(err) for sign in signs):
                raise
            raise MelboError(
                "this map cannot be differentiated in forward mode "
                f"({str(err).splitlines()[0][:80]}): use the exponential method, and give a scale"
            ) from err


def _gradient(fn: Function, at: Tensor, u: Tensor) -> Tensor:
    """J(θ)ᵀu, by plain reverse mode."""
    point = at.requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(fn(point), point, u, materialize_grads=True)[0]


def _push(fn: Function, at: Tensor, v: Tensor) -> Tensor:
    """J(θ)v."""
    tangent: Tensor = torch.func.jvp(fn, (at,), (v,))[1]
    return tangent


def _pull(fn: Function, at: Tensor, u: Tensor) -> Tensor:
    """J(θ)ᵀu."""
    gradient: Tensor = torch.func.vjp(fn, at)[1](u)[0]
    return gradient


def _push_pull(fn: Function, at: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Derivative along v of J(θ)ᵀu."""
    return _push(lambda theta: _pull(fn, theta, u), at, v)


def _square(fn: Function, theta: Tensor) -> Tensor:
    """‖fn(θ)‖² ``[k, 1]``."""
    return fn(theta).square().sum(-1, keepdim=True)


def _push_gradient(fn: Function, at: Tensor, v: Tensor) -> Tensor:
    """Derivative along v of the gradient of ``fn``, which has one column."""
    return _push(lambda theta: _pull(fn, theta, torch.ones_like(theta[..., :1])), at, v)


def _push_push(fn: Function, at: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """Derivative along v of J(θ)w."""
    return _push(lambda theta: _push(fn, theta, w), at, v)


class _PlainLayerNorm(TorchFunctionMode):
    """Layer norms written out.

    torch's own rule is silently wrong when forward mode is nested (pytorch/pytorch#196700).
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.nn.functional.layer_norm:
            return _layer_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    axes = list(range(-len(normalized_shape), 0))
    x = input.to(torch.promote_types(input.dtype, torch.float32))
    centred = x - x.mean(axes, keepdim=True)
    x = centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + eps)
    x = x.to(input.dtype)
    x = x if weight is None else x * weight
    return x if bias is None else x + bias
