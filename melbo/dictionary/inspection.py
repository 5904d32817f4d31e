"""A dictionary on text that it was not trained on: quality, loss of the model, snippets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from melbo.dictionary.activations import Contexts, activations
from melbo.dictionary.base import Dictionary
from melbo.dictionary.quality import Quality, measure
from melbo.dictionary.snippets import Snippet, snippets
from melbo.dictionary.splice import Losses, losses
from melbo.models.language_model import LanguageModel
from melbo.progress import track


@dataclass(frozen=True)
class Inspection:
    """A dictionary on text.

    Attributes:
        quality: Its quality on the activations.
        losses: The model's loss with the dictionary in the place of the stream; None at the output
            of the last block, which no block reads.
        snippets: Where latents are the most active, by latent.
    """

    quality: Quality
    losses: Losses | None
    snippets: dict[int, list[Snippet]]

    def describe(self) -> dict[str, Any]:
        """All of it, JSON-able."""
        found = self.losses
        loss = None if found is None else {**vars(found), "recovered": found.recovered}
        return {
            **self.quality.describe(),
            "cross_entropy": loss,
            "snippets": {
                str(latent): [snippet.describe() for snippet in several]
                for latent, several in self.snippets.items()
            },
        }


def inspect(
    lm: LanguageModel,
    dictionary: Dictionary,
    layer: int,
    contexts: Contexts,
    latents: Sequence[int] = (),
    random: int = 0,
    seed: int = 0,
    progress: bool = True,
) -> Inspection:
    """Measure a dictionary on text.

    Args:
        lm: The model.
        dictionary: The dictionary.
        layer: Layer that it is of.
        contexts: The text.
        latents: Latents whose snippets are looked for.
        random: Number of further latents, drawn from those that are active somewhere.
        seed: Random seed of these.
        progress: Whether to draw a bar.
    """
    at = lm.layer(layer)
    with track(contexts.rows, "tokens", progress) as bar:
        rows = []
        for few in contexts.passes():
            rows.append(activations(lm, few, [at])[:, 0])
            bar.update(len(rows[-1]))
    measured = measure(dictionary, rows)
    chosen = list(latents)
    if random:
        active = torch.zeros_like(dictionary.b_enc, dtype=torch.bool)
        for x in rows:
            active |= (dictionary.encode(x.to(dictionary.b_dec)) != 0).any(0)
        which = active.nonzero()[:, 0].cpu()
        order = torch.randperm(len(which), generator=torch.Generator().manual_seed(seed))
        chosen += which[order[:random]].tolist()
    found = snippets(lm.tokenizer, dictionary, contexts, rows, chosen)
    return Inspection(
        measured,
        None if at == lm.depth else losses(lm, dictionary, at, contexts),
        dict(zip(chosen, found, strict=True)),
    )
