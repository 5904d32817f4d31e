"""Rescale and shift: a ReLU dictionary as it is, with latents corrected for shrinkage."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from melbo.dictionary.base import Dictionary, Step, any_active, l1, squared_error


class RescaleAndShift(Dictionary):
    """f = 1[π > 0] ⊙ ReLU(e^r ⊙ π + c): active latents of a ReLU dictionary, rescaled and shifted.

    The loss is ‖x − x̂(ReLU(π))‖² + λ‖ReLU(π)‖₁, which trains the ReLU dictionary, plus
    ‖x − x̂(f)‖², of which only r and c get a gradient. The dictionary is therefore the one that
    `ReLU` would find, and r and c repair its magnitudes. `Gated` has the same latents with
    b_mag = e^r ⊙ b_enc + c, but lets the reconstruction train the directions too.

    Attributes:
        r: Logarithm of the scale ``[m]``, 0 at first.
        c: Shift ``[m]``, 0 at first.

    Args:
        d: Width of the activations.
        m: Number of latents.
        seed: Random seed of the directions.
    """

    biases: ClassVar[tuple[str, ...]] = ("b_enc", "b_dec", "c")

    def __init__(self, d: int, m: int, seed: int = 0) -> None:
        super().__init__(d, m, seed)
        self.r = nn.Parameter(torch.zeros(m))
        self.c = nn.Parameter(torch.zeros(m))

    def encode(self, x: Tensor) -> Tensor:
        """Latents ``[..., m]`` of activations ``[..., d]``, rescaled and shifted."""
        return self._corrected(self.preactivations(x))

    def _corrected(self, preactivations: Tensor) -> Tensor:
        corrected = relu(preactivations * self.r.exp() + self.c)
        return torch.where(preactivations > 0, corrected, 0.0)

    def _step(self, x: Tensor, sparsity: float) -> Step:
        preactivations = self.preactivations(x)
        f = self._corrected(preactivations.detach())
        y = self.decode(f, frozen=True)
        terms = {
            "reconstruction": squared_error(x, self.decode(relu(preactivations))),
            "sparsity": sparsity * l1(preactivations),
            "correction": squared_error(x, y),
        }
        return Step(terms, y, any_active(relu(preactivations)))
