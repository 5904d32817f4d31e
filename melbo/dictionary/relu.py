"""The ReLU dictionary, f = ReLU(π), whose penalty shrinks its latents."""

from torch import Tensor
from torch.nn.functional import relu

from melbo.dictionary.base import Dictionary, Step, any_active, l1, squared_error


class ReLU(Dictionary):
    """f = ReLU(π), with the loss ‖x − x̂(f)‖² + λ‖f‖₁.

    The penalty pulls on every active latent, so reconstructions are too small (shrinkage).
    """

    def encode(self, x: Tensor) -> Tensor:
        """Latents ReLU(π) ``[..., m]`` of activations ``[..., d]``."""
        return relu(self.preactivations(x))

    def _step(self, x: Tensor, sparsity: float) -> Step:
        f = self.encode(x)
        y = self.decode(f)
        terms = {"reconstruction": squared_error(x, y), "sparsity": sparsity * l1(f)}
        return Step(terms, y, any_active(f))
