"""The TopK dictionary: the k largest latents stay, and no penalty is needed.

Gao et al. 2024, arXiv 2406.04093.
"""

from torch import Tensor
from torch.nn.functional import relu

from melbo.dictionary.base import Dictionary, squared_error
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
        values, index = self.preactivations(x).topk(self.k, dim=-1, sorted=False)
        empty = values.new_zeros(*values.shape[:-1], len(self.b_enc))
        return empty.scatter(-1, index, relu(values))

    def _terms(self, x: Tensor, sparsity: float) -> dict[str, Tensor]:
        if sparsity != 0:
            raise MelboError(
                f"the weight of sparsity is {sparsity}, but a TopK dictionary has no penalty: "
                "leave it at 0 and choose k"
            )
        return {"reconstruction": squared_error(x, self(x))}
