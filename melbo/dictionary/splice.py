"""A dictionary in the place of the stream: the edit, and what it costs in likelihood."""

from dataclasses import dataclass

import torch
from torch import Tensor

from melbo.dictionary.activations import Contexts
from melbo.dictionary.base import Dictionary
from melbo.errors import MelboError
from melbo.models.decoding.likelihood import BlocksBefore, reply_nll
from melbo.models.edits import Change, InputEdit, edit
from melbo.models.language_model import LanguageModel
from melbo.models.placement import steered_tokens
from melbo.models.tokens import Tokens


@dataclass(frozen=True)
class Splice(InputEdit):
    """The input of a block replaced by its reconstruction, on all tokens but the first of a row.

    Attributes:
        layer: Block whose input is replaced (``hidden_states`` index, negative from the end).
        dictionary: The dictionary; None puts zeros in the place of the stream.
    """

    layer: int
    dictionary: Dictionary | None

    @property
    def prefix_safe(self) -> bool:
        """Tell that no token is counted from the end of the prompt."""
        return True

    def check(self, lm: LanguageModel) -> None:
        """Refuse a model on which the edit cannot work.

        Raises:
            MelboError: No block reads the layer, or the dictionary is of another width.
        """
        super().check(lm)
        require_width(self.dictionary, lm)

    def rows(self, which: Tensor) -> "Splice":
        """See `Edit.rows`; all rows are treated alike."""
        return self

    def begin(self) -> Change:
        """See `InputEdit.begin`; there is no state."""
        return self._change

    @torch.no_grad()
    def _change(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        at = steered_tokens(tokens.index, True, None).to(hidden.device)
        at = at.expand(hidden.shape[:2])
        new = hidden.clone()
        if self.dictionary is None:
            new[at] = 0
        elif at.any():
            new[at] = self.dictionary(hidden[at].to(self.dictionary.b_dec)).to(hidden)
        return new


def require_width(dictionary: Dictionary | None, lm: LanguageModel) -> None:
    """Refuse a dictionary whose width is not that of a model's stream.

    Raises:
        MelboError: The widths differ.
    """
    if dictionary is not None and len(dictionary.b_dec) != lm.width:
        raise MelboError(
            f"the dictionary is of width {len(dictionary.b_dec)}, the stream of {lm.name} of "
            f"width {lm.width}: give the model that it was trained on"
        )


@dataclass(frozen=True)
class Losses:
    """Cross-entropy of the next token on text, in nats, mean over tokens.

    Attributes:
        model: Of the model itself.
        dictionary: With the dictionary in the place of the stream.
        zero: With zeros in the place of the stream.
    """

    model: float
    dictionary: float
    zero: float

    @property
    def recovered(self) -> float:
        """Share of the loss that a dictionary recovers, (zero − dictionary) / (zero − model)."""
        return (self.zero - self.dictionary) / (self.zero - self.model)


@torch.no_grad()
def losses(lm: LanguageModel, dictionary: Dictionary, layer: int, contexts: Contexts) -> Losses:
    """Measure the model's loss with the stream, with a dictionary and with zeros in its place.

    The first token of a context keeps its stream in all three.

    Args:
        lm: The model.
        dictionary: The dictionary.
        layer: Layer that it is of.
        contexts: Text that it was not trained on.

    Raises:
        MelboError: No block reads the layer, or the dictionary is of another width.
    """
    sums = torch.zeros(3, dtype=torch.float64)
    at, total = lm.layer(layer), 0
    for few in contexts.passes(512):
        rows = [ids[real].tolist() for ids, real in zip(few.ids, few.mask, strict=True)]
        pairs = [(row[:1], row[1:]) for row in rows]
        before = BlocksBefore(lm, at)
        for i, edits in enumerate(
            ((), (Splice(layer, dictionary),), (Splice(layer, None),)),
        ):
            with edit(lm, *edits):
                nll = reply_nll(lm, lm.model, pairs, once=False, before=before)
            sums[i] += nll.double().sum().cpu()
        total += few.rows
    return Losses(*(sums / total).tolist())
