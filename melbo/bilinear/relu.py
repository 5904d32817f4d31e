"""The split of a ReLU MLP, exact until the first gate flips."""

from dataclasses import dataclass

import torch
from torch import Tensor

from melbo.bilinear.split import Split, check_weights, rows_like
from melbo.errors import MelboError


# not compared by value: weights are tensors
@dataclass(frozen=True, eq=False)
class ReluMLP:
    """The layer y(x) = W_out·ReLU(W_in x + b_in) + b_out (docs/bilinear.md).

    Between two flips of gates it is affine.

    Attributes:
        W_in: ``[h, d]``.
        W_out: ``[d_out, h]``.
        b_in: ``[h]``; zero if left out.
        b_out: ``[d_out]``; zero if left out.

    Raises:
        MelboError: Shapes do not fit, or a weight is not finite or in half precision.
    """

    W_in: Tensor
    W_out: Tensor
    b_in: Tensor | None = None
    b_out: Tensor | None = None

    def __post_init__(self) -> None:
        """Refuse weights that do not fit together.

        Raises:
            MelboError: They do not.
        """
        first, last = list(self.W_in.shape), list(self.W_out.shape)
        if not (len(first) == len(last) == 2 and last[1] == first[0] and 0 not in (*first, *last)):
            raise MelboError(
                f"got W_in {first} and W_out {last}: expected W_in [h, d] and W_out [d_out, h]"
            )
        weights = {"W_in": self.W_in, "W_out": self.W_out}
        biases = {"b_in": (self.b_in, first[0]), "b_out": (self.b_out, last[0])}
        for name, (bias, width) in biases.items():
            if bias is None:
                continue
            if bias.shape != (width,):
                raise MelboError(f"{name} has shape {list(bias.shape)}: expected [{width}]")
            weights[name] = bias
        check_weights(**weights)

    @property
    def width(self) -> int:
        """Width d of what the layer reads."""
        return self.W_in.shape[1]

    def __call__(self, x: Tensor) -> Tensor:
        """y(x), rows ``[k, d] → [k, d_out]``."""
        (x,) = rows_like(self.W_in, self.width, x=x)
        return self._write(self._before(x).relu())

    def split(self, x: Tensor, s: Tensor) -> Split:
        """Terms of y(x + αs) = y(x) + α·W_out[g ⊙ W_in s], for 0 ≤ α ≤ `first_flip`.

        The gates g are those of x; one at exactly zero counts as open if s opens it. The term of
        second order is zero. For negative α take −s.

        Args:
            x: Activations ``[k, d]``.
            s: Steering vectors ``[k, d]``; one row goes with all activations.
        """
        before, slope = self._line(x, s)
        gates = (before > 0) | ((before == 0) & (slope > 0))
        base = self._write(before.relu())
        return Split(base, (gates * slope) @ self.W_out.T, torch.zeros_like(base))

    def first_flip(self, x: Tensor, s: Tensor) -> Tensor:
        """Smallest α > 0 at which a gate flips, ``[k]``; infinite where none ever does.

        Hidden unit i is at zero where α = −(W_in x + b_in)_i / (W_in s)_i.

        Args:
            x: Activations ``[k, d]``.
            s: Steering vectors ``[k, d]``; one row goes with all activations.
        """
        before, slope = self._line(x, s)
        toward_zero = before.sign() * slope.sign() < 0
        alpha: Tensor = torch.where(toward_zero, -before / slope, torch.inf).amin(-1)
        return alpha

    def _before(self, x: Tensor) -> Tensor:
        """Hidden units before ReLU, ``[k, h]``."""
        hidden = x @ self.W_in.T
        return hidden if self.b_in is None else hidden + self.b_in

    def _write(self, hidden: Tensor) -> Tensor:
        """Output of the layer for hidden units ``[k, h]``."""
        y = hidden @ self.W_out.T
        return y if self.b_out is None else y + self.b_out

    def _line(self, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden units before ReLU at x, and their slope along s, both ``[k, h]``."""
        x, s = rows_like(self.W_in, self.width, x=x, s=s)
        return self._before(x), s @ self.W_in.T
