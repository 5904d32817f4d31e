"""Noise in activations (fuzzing): each candidate is a stream of noise of its own."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from melbo.discovery.candidates import Edited, pick
from melbo.errors import MelboError
from melbo.maths.keyed_random import gaussian, key_of
from melbo.models.edits import Change, InputEdit
from melbo.models.language_model import LanguageModel
from melbo.models.placement import layers_at
from melbo.models.text.prompts import Prompts
from melbo.models.tokens import Tokens

#: Norms of the noise, as shares of the stream's median norm.
SHARES = (0.25, 0.5, 1.0)


@dataclass(frozen=True)
class AddNoise(InputEdit):
    """Add Gaussian noise to the input of a block: h ← h + ‖n‖·g/√d, g ~ N(0, 1) at every token.

    The noise at a token depends on the row's seed and on the token's index in its row, so it is the
    same with a cache or without, padded or not, and for every prompt.

    Attributes:
        layer: Block whose input is changed (``hidden_states`` index, negative from the end).
        norms: Norm of each row's noise, root mean square.
        seeds: Random seed of each row.
    """

    layer: int
    norms: tuple[float, ...]
    seeds: tuple[int, ...]

    @property
    def prefix_safe(self) -> bool:
        """Tell that tokens are counted from the first of a row."""
        return True

    def rows(self, which: Tensor) -> "AddNoise":
        """See `Edit.rows`."""
        chosen = which.tolist()
        return AddNoise(self.layer, pick(self.norms, chosen), pick(self.seeds, chosen))

    def begin(self) -> Change:
        """See `InputEdit.begin`; there is no state."""
        return self._change

    def _change(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        rows, _, width = hidden.shape
        if rows != len(self.seeds):
            raise MelboError(
                f"got {len(self.seeds)} streams of noise for a batch of {rows} rows: "
                "expected one for each"
            )
        index = tokens.index.expand(rows, -1).tolist()
        noise = torch.zeros(*hidden.shape)
        for row, (norm, seed) in enumerate(zip(self.norms, self.seeds, strict=True)):
            for column, place in enumerate(index[row]):
                if place >= 0:  # no padding
                    noise[row, column] = gaussian(seed, place, width) * (norm / width**0.5)
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        return (hidden + noise.to(hidden.device, dtype)).to(hidden.dtype)


@dataclass(frozen=True)
class Noisy(Edited):
    """Streams of noise as candidates, all at one layer.

    Attributes:
        layer: Block whose input gets the noise.
        norms: Norm of each candidate's noise.
        seeds: Random seed of each candidate.
    """

    layer: int
    norms: tuple[float, ...]
    seeds: tuple[int, ...]

    def __len__(self) -> int:
        """Number of candidates."""
        return len(self.seeds)

    def only(self, which: Sequence[int]) -> "Noisy":
        """Some of the candidates."""
        return Noisy(self.layer, pick(self.norms, which), pick(self.seeds, which))

    def edit(self, prompts: Prompts) -> AddNoise:
        """See `Edited.edit`."""
        times = len(prompts)
        return AddNoise(self.layer, self.norms * times, self.seeds * times)

    def describe(self, i: int) -> dict[str, Any]:
        """See `Candidates.describe`."""
        return {
            "kind": "noise",
            "layer": self.layer,
            "norm": self.norms[i],
            "seed": self.seeds[i],
        }


@dataclass(frozen=True)
class ActivationNoise:
    """Elicitor: Gaussian noise in the activations of one layer, fresh at each token.

    Attributes:
        layer: Layer that gets the noise, as a share of the depth.
        shares: Norms of the noise, as shares of the stream's median norm there; they take turns.
    """

    layer: float = 0.4
    shares: tuple[float, ...] = SHARES
    name: str = field(default="noise", init=False)
    description: str = field(default="noise in activations, fresh at each token", init=False)

    def candidates(
        self, lm: LanguageModel, prompts: Prompts, num: int, seed: int, progress: bool
    ) -> tuple[Noisy, float]:
        """See `Elicitor.candidates`; the first prompts tell the norm of the stream."""
        layer, _ = layers_at(lm.depth, (self.layer, 1.0))
        typical, read = stream_norm(lm, prompts[:8], layer)
        norms = tuple(typical * self.shares[i % len(self.shares)] for i in range(num))
        return Noisy(layer, norms, tuple(key_of(seed, i) for i in range(num))), read


def stream_norm(lm: LanguageModel, prompts: Prompts, layer: int) -> tuple[float, float]:
    """Median norm of the stream entering a block, first tokens left out.

    Args:
        lm: The model.
        prompts: Prompts that it reads.
        layer: The block.

    Returns:
        The norm, and the number of tokens that the whole model would have read for it.
    """
    norms = [lm.activations(tokens, layer)[1:].float().norm(dim=-1) for tokens in prompts.tokens]
    read = sum(map(len, prompts.tokens)) * (layer + 1) / lm.depth
    return torch.cat(norms).median().item(), read
