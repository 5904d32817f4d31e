"""The gated dictionary without its step: the latents of a ReLU dictionary, each with a factor.

Proposed in a comment under the post that announced gated dictionaries (J. Drori, 2024).
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from melbo.dictionary.base import Dictionary, Step, any_active, l1, squared_error


class Stepless(Dictionary):
    """t ⊙ f with f = ReLU(π) and learnt factors t.

    The loss is ‖x − x̂(t ⊙ f)‖² + λ‖f‖₁ + ‖x − x̂_frozen(f)‖², as of `Gated`. It is `Gated` with the
    step removed and b_mag tied to e^r ⊙ b_enc, where t = e^r. With that tie the step changes
    nothing. All that `Gated` adds is therefore a bias of its own for the magnitudes.

    Attributes:
        t: Factors ``[m]``, 1 at first.

    Args:
        d: Width of the activations.
        m: Number of latents.
        seed: Random seed of the directions.
    """

    def __init__(self, d: int, m: int, seed: int = 0) -> None:
        super().__init__(d, m, seed)
        self.t = nn.Parameter(torch.ones(m))

    def encode(self, x: Tensor) -> Tensor:
        """Latents t ⊙ ReLU(π) ``[..., m]`` of activations ``[..., d]``."""
        return self.t * relu(self.preactivations(x))

    def _step(self, x: Tensor, sparsity: float) -> Step:
        f = relu(self.preactivations(x))
        y = self.decode(self.t * f)
        terms = {
            "reconstruction": squared_error(x, y),
            "sparsity": sparsity * l1(f),
            "gate": squared_error(x, self.decode(f, frozen=True)),
        }
        return Step(terms, y, any_active(f))
