"""Gated MLPs with their non-linearity, and bilinear layers that touch them at an activation."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from melbo.bilinear.layer import Bilinear
from melbo.bilinear.split import Split, rows_like

Act = Callable[[Tensor], Tensor]


def identity(x: Tensor) -> Tensor:
    """The gate of a bilinear layer."""
    return x


# not compared by value: weights are tensors
@dataclass(frozen=True, eq=False)
class GatedMLP:
    """The layer y(x) = D[act(Lx) ⊙ (Rx)] (docs/bilinear.md).

    Attributes:
        weights: The layer without act.
        act: The non-linearity, entry by entry; the identity for a bilinear layer.
    """

    weights: Bilinear
    act: Act = identity

    def __call__(self, x: Tensor) -> Tensor:
        """y(x), rows ``[k, d] → [k, d_out]``."""
        return self.hidden(x) @ self.weights.D.T

    def hidden(self, x: Tensor) -> Tensor:
        """Hidden units act(Lx) ⊙ (Rx), rows ``[k, d] → [k, h]``."""
        (x,) = rows_like(self.weights.D, self.weights.width, x=x)
        return self.act(x @ self.weights.L.T) * (x @ self.weights.R.T)

    def tangent(self, x: Tensor, s: Tensor) -> Split:
        """Split of the layer whose gate is the tangent of act at Lx, for rows x and s.

        It is quadratic in α and exact for a bilinear layer. Its term of first order is that of the
        MLP itself.

        Args:
            x: Activations ``[k, d]``.
            s: Steering vectors ``[k, d]``; one row goes with all activations.
        """
        return self._expanded(x, s, curved=False)

    def taylor(self, x: Tensor, s: Tensor) -> Split:
        """Taylor polynomial of the MLP at x along s, up to α².

        It adds ½ act″(Lx) ⊙ (Ls)² ⊙ (Rx) to the term of second order of `tangent`.

        Args:
            x: Activations ``[k, d]``.
            s: Steering vectors ``[k, d]``; one row goes with all activations.
        """
        return self._expanded(x, s, curved=True)

    def _expanded(self, x: Tensor, s: Tensor, curved: bool) -> Split:
        """Terms of D[gate ⊙ R(x + αs)], the gate expanded at Lx."""
        L, R, D = self.weights.L, self.weights.R, self.weights.D
        x, s = rows_like(D, self.weights.width, x=x, s=s)
        gate, up, gate_s, up_s = x @ L.T, x @ R.T, s @ L.T, s @ R.T
        value, slope, curvature = self._derivatives(gate)
        own = slope * gate_s * up_s
        if curved:
            own = own + curvature * gate_s.square() * up / 2
        cross = value * up_s + slope * gate_s * up
        return Split((value * up) @ D.T, cross @ D.T, own @ D.T)

    def _derivatives(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values of act, act′ and act″, each of the shape of z."""
        ones = torch.ones_like(z)

        def slope(at: Tensor) -> Tensor:
            first: Tensor = torch.func.jvp(self.act, (at,), (ones,))[1]
            return first

        first, second, *_ = torch.func.jvp(slope, (z,), (ones,))
        return self.act(z), first, second
