"""The gated dictionary: one path says which latents are active, another how much.

Rajamanoharan et al. 2024, arXiv 2404.16014.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from melbo.dictionary.base import Dictionary, Step, any_active, l1, squared_error


class Gated(Dictionary):
    """f = 1[π > 0] ⊙ ReLU((x − b_dec)·W_mag + b_mag), with W_mag = W_enc·diag(e^r).

    The loss is ‖x − x̂(f)‖² + λ‖ReLU(π)‖₁ + ‖x − x̂_frozen(ReLU(π))‖². The last term alone teaches
    the gate what to let through, because a step has no gradient; it leaves the decoder alone.

    Attributes:
        r: Logarithm of the magnitude path's scale ``[m]``, 0 at first.
        b_mag: Bias of the magnitude path ``[m]``, 0 at first.

    Args:
        d: Width of the activations.
        m: Number of latents.
        seed: Random seed of the directions.
    """

    biases: ClassVar[tuple[str, ...]] = ("b_enc", "b_dec", "b_mag")

    def __init__(self, d: int, m: int, seed: int = 0) -> None:
        super().__init__(d, m, seed)
        self.r = nn.Parameter(torch.zeros(m))
        self.b_mag = nn.Parameter(torch.zeros(m))

    def encode(self, x: Tensor) -> Tensor:
        """Latents ``[..., m]`` of activations ``[..., d]``: gate times magnitude."""
        return self._latents(self.projections(x))

    def _latents(self, projections: Tensor) -> Tensor:
        """Latents ``[..., m]`` for (x − b_dec)·W_enc, which both paths share."""
        magnitude = relu(projections * self.r.exp() + self.b_mag)
        return torch.where(projections + self.b_enc > 0, magnitude, 0.0)

    def _step(self, x: Tensor, sparsity: float) -> Step:
        projections = self.projections(x)
        gate, f = projections + self.b_enc, self._latents(projections)
        y = self.decode(f)
        terms = {
            "reconstruction": squared_error(x, y),
            "sparsity": sparsity * l1(gate),
            "gate": squared_error(x, self.decode(relu(gate), frozen=True)),
        }
        return Step(terms, y, any_active(f))
