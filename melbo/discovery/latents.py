"""Latents of a sparse dictionary as candidates: the directions of its decoder."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from melbo.dictionary.base import Dictionary
from melbo.dictionary.origin import Origin
from melbo.dictionary.saved import load
from melbo.dictionary.splice import require_width
from melbo.discovery.differences import Push, as_candidates, streams
from melbo.discovery.steered import STRENGTHS, Steered
from melbo.errors import MelboError
from melbo.maths.linalg import unit
from melbo.models.language_model import LanguageModel
from melbo.models.text.prompts import Prompts
from melbo.models.weights.fingerprint import fingerprint


@dataclass(frozen=True)
class Latents:
    """Elicitor: decoder directions of a dictionary, added at the dictionary's layer.

    Latents that fire on the prompts come first, in order of what they write there: their mean
    activation over all tokens but the first, times the norm of their direction. Those that fire on
    none come after them in random order. A direction is added as the dictionary adds it, never
    taken away. A latent whose direction is zero is left out.

    Attributes:
        dictionary: The dictionary.
        layer: Layer that it is of (``hidden_states`` index, negative from the end).
        strengths: Multiples of R at that layer (see `as_candidates`); they take turns, latent after
            latent.
    """

    dictionary: Dictionary
    layer: int
    strengths: tuple[float, ...] = STRENGTHS
    description: str = field(default="decoder directions of a dictionary", init=False)

    @cached_property
    def name(self) -> str:
        """``"latents-"`` and a digest, so that no audit goes on with another dictionary."""
        return f"latents-{fingerprint(self.dictionary)[:6]}"

    @classmethod
    def read(cls, folder: str | Path, lm: LanguageModel, base: LanguageModel | None = None) -> Self:
        """Read a dictionary of a model, or of the base that the model was tuned from.

        Args:
            folder: Folder of the dictionary.
            lm: The model.
            base: Its base; a dictionary of its weights will do too.

        Raises:
            MelboError: There is no dictionary, it is of other weights or another width, or no block
                reads its layer.
        """
        dictionary, origin = load(folder), Origin.read(folder)
        of = base if base is not None and origin.model_sha256 == base.fingerprint else lm
        found = cls(dictionary, origin.check(dictionary, of))
        found.check(lm)
        return found

    def check(self, lm: LanguageModel) -> int:
        """Refuse a model that the dictionary does not fit; the layer, from the beginning.

        Args:
            lm: The model.

        Raises:
            MelboError: Their widths differ, or no block reads that layer.
        """
        require_width(self.dictionary, lm)
        layer = lm.layer(self.layer)
        if layer == lm.depth:
            raise MelboError(
                f"the dictionary is of layer {layer}, the end of {lm.name}, where no block reads "
                f"what is added: give one of layers 0 to {lm.depth - 1}"
            )
        return layer

    def candidates(
        self, lm: LanguageModel, prompts: Prompts, num: int, seed: int, progress: bool
    ) -> tuple[Steered, float]:
        """See `Elicitor.candidates`.

        Raises:
            MelboError: See `check`.
        """
        layer = self.check(lm)
        written, W = self._written(lm, prompts, layer), self.dictionary.W_dec.detach().float().cpu()
        order = _order(written, W.norm(dim=1) > 0, seed)[:num]
        pushes = [
            Push(
                layer,
                v,
                self.strengths[k % len(self.strengths)],
                {"kind": "latent", "index": i, "written": written[i].item()},
            )
            for k, (i, v) in enumerate(zip(order, unit(W[order]), strict=True))
        ]
        found, tokens = as_candidates(lm, prompts, pushes, num, progress, signs=(1,))
        return found, tokens + sum(map(len, prompts.tokens))

    @torch.no_grad()
    def _written(self, lm: LanguageModel, prompts: Prompts, layer: int) -> Tensor:
        """Norm of what each latent writes on the prompts ``[m]``, mean over tokens."""
        # the first token is an attention sink, which dictionaries are not trained on
        rows = torch.cat([streams(lm, row)[layer, 1:] for row in prompts.tokens])
        W = self.dictionary.W_dec
        active = self.dictionary.encode(rows.to(W.device, W.dtype)).float().mean(0)
        written: Tensor = active * W.float().norm(dim=1)
        return written.cpu()


def _order(written: Tensor, usable: Tensor, seed: int) -> list[int]:
    """Numbers of the usable latents: those that write most first, the silent ones at random.

    Args:
        written: Norm of what each latent writes ``[m]``.
        usable: Whether it has a direction ``[m]``.
        seed: Random seed of the silent ones.
    """
    shuffled = torch.randperm(len(written), generator=torch.Generator().manual_seed(seed))
    by_size = written[shuffled].argsort(descending=True, stable=True)
    return [int(i) for i in shuffled[by_size] if usable[i]]
