"""What `melbo.select` asks a steered model, and how a judge's scores come back."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from melbo.errors import MelboError
from melbo.evaluation.halving import Ask
from melbo.evaluation.judges import Score, attempt
from melbo.features.generate import first_tokens
from melbo.features.steerable import Steerable
from melbo.models.decode import decode
from melbo.models.edits import Edit
from melbo.models.language_model import LanguageModel
from melbo.models.prompts import Prompts


def asking(
    lm: LanguageModel,
    features: Steerable,
    sets: Mapping[str, Prompts],
    score: Score,
    max_new_tokens: int = 32,
    strength: float = 1.0,
) -> Ask:
    """Replies of the steered model, scored; what the score function raises is told with the pair it was raised on.

    Args:
        lm: The model.
        bank: The candidates.
        sets: ``"validation"`` and ``"test"`` prompts.
        score: Of prompt and reply.
        max_new_tokens: Length of a reply at most.
        strength: Multiple of the scale.

    Raises:
        MelboError: Features of another model, or a prompt in both sets.
    """
    _check(lm, features, sets)

    def ask(which: str, pairs: Sequence[tuple[int | None, int]]) -> list[float | str]:
        prompts = sets[which]
        replies = decode(
            lm,
            [prompts.tokens[p] for _, p in pairs],
            _rows(features, pairs, strength),
            max_new_tokens,
            progress=False,
            alike=_alike(pairs),
        )
        texts = lm.tokenizer.batch_decode(replies, skip_special_tokens=True)
        return [
            attempt(score, prompts.texts[p], text)
            for (_, p), text in zip(pairs, texts, strict=True)
        ]

    return ask


def contrasting(
    lm: LanguageModel,
    features: Steerable,
    sets: Mapping[str, Prompts],
    pair: tuple[str, str],
    strength: float = 1.0,
) -> Ask:
    """logit(A) − logit(B) of the first token of the steered reply; see `asking`.

    Raises:
        MelboError: As `asking`; also two strings that begin with the same token.
    """
    _check(lm, features, sets)
    a, b = first_tokens(lm, pair)

    def ask(which: str, pairs: Sequence[tuple[int | None, int]]) -> list[float | str]:
        found: list[float | str] = [0.0] * len(pairs)

        def take(row: int, logits: Tensor) -> None:
            found[row] = (logits[a] - logits[b]).item()

        prompts = [sets[which].tokens[p] for _, p in pairs]
        decode(
            lm,
            prompts,
            _rows(features, pairs, strength),
            1,
            first_logits=take,
            progress=False,
            alike=_alike(pairs),
        )
        return found

    return ask


def _rows(features: Steerable, pairs: Sequence[tuple[int | None, int]], strength: float) -> Edit:
    """The edit that steers row i with the feature of pair i."""
    which = torch.tensor([0 if who is None else who for who, _ in pairs])
    return features.edit(
        which, torch.tensor([0.0 if who is None else strength for who, _ in pairs])
    )


def _alike(pairs: Sequence[tuple[int | None, int]]) -> list[int]:
    """Which rows are edited alike."""
    return [-1 if who is None else who for who, _ in pairs]


def _check(lm: LanguageModel, features: Steerable, sets: Mapping[str, Prompts]) -> None:
    features.check_model(lm)
    for text, tokens in zip(sets["test"].texts, sets["test"].tokens, strict=True):
        if tokens in sets["validation"].tokens:
            raise MelboError(
                f"the test prompt {text!r} is one of the validation prompts: its score would flatter; give another"
            )
