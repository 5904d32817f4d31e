"""The TopK dictionary: the k largest latents stay, and no penalty is needed.

Gao et al. 2024, arXiv 2406.04093.
"""

import torch
from torch import Tensor
from torch.nn.functional import relu

from melbo.dictionary.base import Dictionary, Step, squared_error
from melbo.dictionary.sparse import largest, sparse_reconstruction
from melbo.errors import MelboError


class TopK(Dictionary):
    """f = ReLU(π) where π is among the k largest of an activation, 0 elsewhere.

    The loss is ‖x − x̂(f)‖².

    Attributes:
        k: Most latents that are active at once.

    Args:
        d: Width of the activations.
        m: Number of latents.
        k: Most latents that are active at once.
        seed: Random seed of the directions.

    Raises:
        MelboError: k is not between 1 and m.
    """

    def __init__(self, d: int, m: int, k: int, seed: int = 0) -> None:
        super().__init__(d, m, seed)
        if not 1 <= k <= m:
            raise MelboError(f"k is {k}: expected 1 to {m}, the number of latents")
        self.k = k

    def encode(self, x: Tensor) -> Tensor:
        """Latents ``[..., m]`` of activations ``[..., d]``, at most k of each not 0."""
        values, index = largest(self.preactivations(x), self.k)
        empty = values.new_zeros(*values.shape[:-1], len(self.b_enc))
        return empty.scatter(-1, index, relu(values))

    def _step(self, x: Tensor, sparsity: float) -> Step:
        if sparsity != 0:
            raise MelboError(
                f"the weight of sparsity is {sparsity}, but a TopK dictionary has no penalty: "
                "leave it at 0 and choose k"
            )
        self.check(x)
        rows = x.flatten(0, -2) if x.ndim != 2 else x
        y, values, index = sparse_reconstruction(
            rows, self.b_dec, self.W_enc, self.b_enc, self.W_dec, self.k
        )
        fired = torch.zeros_like(self.b_enc, dtype=torch.bool)
        fired[index[values > 0]] = True
        y = y.view_as(x)
        return Step({"reconstruction": squared_error(x, y)}, y, fired)
