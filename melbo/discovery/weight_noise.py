"""Noise in weights: each candidate is a model whose output matrices are slightly off."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from melbo.discovery.candidates import pick
from melbo.discovery.one_by_one import OneByOne
from melbo.errors import MelboError
from melbo.maths.keyed_random import key_of
from melbo.models.language_model import LanguageModel
from melbo.models.text.prompts import Prompts
from melbo.models.weights.output_matrices import OutputMatrix, output_matrices
from melbo.models.weights.storage import Change, changed, is_offloaded, require_plain

#: Sizes of the noise, as shares of a matrix's root mean square.
SIZES = (0.1, 0.2, 0.3)


@dataclass(frozen=True)
class Perturbed(OneByOne):
    """Noise in weights as candidates: W ← W + σ·rms(W)·G.

    W is every matrix that writes to the residual stream. G is standard normal, and depends on the
    seed and the matrix's name. Weights are put back bit by bit after the replies of a candidate.

    Attributes:
        sizes: σ of each candidate.
        seeds: Random seed of each candidate.
    """

    what: ClassVar[str] = "weight noise"
    sizes: tuple[float, ...]
    seeds: tuple[int, ...]

    def __len__(self) -> int:
        """Number of candidates."""
        return len(self.seeds)

    def only(self, which: Sequence[int]) -> "Perturbed":
        """Some of the candidates."""
        return Perturbed(pick(self.sizes, which), pick(self.seeds, which))

    def weights(self, lm: LanguageModel, i: int) -> AbstractContextManager[None]:
        """See `OneByOne.weights`."""
        return perturbed(lm, output_matrices(lm), self.sizes[i], self.seeds[i])

    def describe(self, i: int) -> dict[str, Any]:
        """See `Candidates.describe`."""
        return {"kind": "weight-noise", "size": self.sizes[i], "seed": self.seeds[i]}


@dataclass(frozen=True)
class WeightNoise:
    """Elicitor: Gaussian noise in the matrices that write to the residual stream.

    Attributes:
        sizes: σ, as shares of a matrix's root mean square; they take turns.
    """

    sizes: tuple[float, ...] = SIZES
    name: str = field(default="weight-noise", init=False)
    description: str = field(default="noise in the matrices that write to the stream", init=False)

    def candidates(
        self, lm: LanguageModel, prompts: Prompts, num: int, seed: int, progress: bool
    ) -> tuple[Perturbed, float]:
        """See `Elicitor.candidates`; nothing has to be found.

        Raises:
            MelboError: The weights are quantised or offloaded, or the matrices are not found.
        """
        require_editable(lm, output_matrices(lm))
        sizes = tuple(self.sizes[i % len(self.sizes)] for i in range(num))
        return Perturbed(sizes, tuple(key_of(seed, i) for i in range(num))), 0.0


@contextmanager
def perturbed(
    lm: LanguageModel, matrices: Sequence[OutputMatrix], size: float, seed: int
) -> Iterator[None]:
    """Inside the ``with`` block the matrices are noisy; afterwards they are as before, bit by bit.

    Args:
        lm: The model.
        matrices: Its output matrices.
        size: σ, as a share of each matrix's root mean square.
        seed: Random seed.

    Raises:
        MelboError: The weights are quantised or offloaded.
    """
    require_editable(lm, matrices)
    changes = [Change(w.name, partial(_noisy, size, key_of(seed, w.name))) for w in matrices]
    with changed(lm.model, changes):
        yield


def require_editable(lm: LanguageModel, matrices: Sequence[OutputMatrix]) -> None:
    """Refuse matrices that cannot be changed where they are.

    Raises:
        MelboError: One is quantised, or accelerate keeps it elsewhere.
    """
    for w in matrices:
        require_plain(w.module, w.weight, w.name)
        if is_offloaded(lm.model, w.name):
            raise MelboError(
                f"the weights of {w.name} are offloaded, and would get their noise whenever they "
                "are fetched: load the model on one device"
            )


def _noisy(size: float, key: int, weight: Tensor) -> Tensor:
    """A matrix with noise on it, computed in float32."""
    generator = torch.Generator().manual_seed(key)
    exact = weight.float()
    noise = torch.randn(weight.shape, generator=generator).to(weight.device)
    return exact + size * exact.square().mean().sqrt() * noise
