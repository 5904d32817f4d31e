"""Pieces of text on which a latent is the most active."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from melbo.dictionary.activations import Contexts
from melbo.dictionary.base import Dictionary
from melbo.errors import MelboError


@dataclass(frozen=True)
class Snippet:
    """A token on which a latent is active, with what stands around it.

    Attributes:
        value: Value of the latent.
        text: Number of the text, from 0.
        before: Text before the token.
        token: The token.
        after: Text after it.
    """

    value: float
    text: int
    before: str
    token: str
    after: str

    def describe(self) -> dict[str, Any]:
        """All attributes, JSON-able."""
        return asdict(self)


@torch.no_grad()
def snippets(
    tokenizer: Any,
    dictionary: Dictionary,
    contexts: Contexts,
    activations: Sequence[Tensor],
    latents: Sequence[int],
    each: int = 3,
    around: int = 8,
) -> list[list[Snippet]]:
    """Tokens on which latents are the most active, one of a context at most.

    Args:
        tokenizer: Tokenizer of the model.
        dictionary: The dictionary.
        contexts: The text.
        activations: Activations of all its tokens but the first of each context, in batches
            ``[n, d]``, in order.
        latents: Indices of the latents.
        each: Number of tokens of each latent; fewer where it is active in fewer contexts.
        around: Number of tokens shown on either side.

    Raises:
        MelboError: There is no such latent.
    """
    m = len(dictionary.b_enc)
    wrong = [latent for latent in latents if not 0 <= latent < m]
    if wrong:
        raise MelboError(f"got latent {wrong[0]}: expected 0 to {m - 1}, as the dictionary has {m}")
    real = contexts.mask.clone()
    real[:, 0] = False
    values = torch.cat(
        [dictionary.encode(x.to(dictionary.b_dec))[:, list(latents)].cpu() for x in activations]
    )
    table = torch.zeros(*real.shape, len(latents))
    table[real] = values.float()
    best = table.max(1)
    found = []
    for i in range(len(latents)):
        top = best.values[:, i].topk(min(each, len(contexts)))
        places = [
            (int(row), int(best.indices[row, i]))
            for value, row in zip(top.values, top.indices, strict=True)
            if value > 0
        ]
        found.append([_snippet(tokenizer, contexts, table, i, place, around) for place in places])
    return found


def _snippet(
    tokenizer: Any,
    contexts: Contexts,
    table: Tensor,
    latent: int,
    place: tuple[int, int],
    around: int,
) -> Snippet:
    """The token at a place (context, column), with what stands around it."""
    row, at = place
    ids = contexts.ids[row][contexts.mask[row]].tolist()
    return Snippet(
        value=table[row, at, latent].item(),
        text=int(contexts.texts[row]),
        before=tokenizer.decode(ids[max(0, at - around) : at]),
        token=tokenizer.decode(ids[at : at + 1]),
        after=tokenizer.decode(ids[at + 1 : at + 1 + around]),
    )
