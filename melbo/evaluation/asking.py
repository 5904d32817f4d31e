"""Scores of a steered model's replies, as `melbo.select` asks for them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from melbo.evaluation.halving import Ask, Pair
from melbo.evaluation.held_out import refuse_reused
from melbo.evaluation.scorers import Scorer, attempt
from melbo.features.generate import first_tokens
from melbo.features.steerable import Steerable
from melbo.models.decoding.decode import decode
from melbo.models.edits import Edit
from melbo.models.language_model import LanguageModel
from melbo.models.text.prompts import Prompts


def ask_replies(
    lm: LanguageModel,
    features: Steerable,
    sets: Mapping[str, Prompts],
    score: Scorer,
    max_new_tokens: int = 32,
    strength: float = 1.0,
) -> Ask:
    """A function that lets the steered model reply, and scores the replies.

    Errors of the scorer are returned in place of the score.

    Args:
        lm: The model.
        features: The candidates.
        sets: ``"validation"`` and ``"test"`` prompts.
        score: The scorer.
        max_new_tokens: Length of a reply at most.
        strength: Multiple of the scale.

    Raises:
        MelboError: The features are of another model, or a prompt is in both sets.
    """
    _check(lm, features, sets)

    def ask(which: str, pairs: Sequence[Pair]) -> list[float | str]:
        prompts = sets[which]
        replies = decode(
            lm,
            [prompts.tokens[p] for _, p in pairs],
            _edit(features, pairs, strength),
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


def ask_contrasts(
    lm: LanguageModel,
    features: Steerable,
    sets: Mapping[str, Prompts],
    pair: tuple[str, str],
    strength: float = 1.0,
) -> Ask:
    """A function that scores by logit(A) − logit(B) of the first token of the steered reply.

    Args:
        lm: The model.
        features: The candidates.
        sets: ``"validation"`` and ``"test"`` prompts.
        pair: The strings A and B, of which the first tokens are compared.
        strength: Multiple of the scale.

    Raises:
        MelboError: The features are of another model, a prompt is in both sets, or the two strings
            begin with the same token.
    """
    _check(lm, features, sets)
    a, b = first_tokens(lm, pair)

    def ask(which: str, pairs: Sequence[Pair]) -> list[float | str]:
        contrasts: list[float | str] = [0.0] * len(pairs)

        def take(row: int, logits: Tensor) -> None:
            contrasts[row] = (logits[a] - logits[b]).item()

        decode(
            lm,
            [sets[which].tokens[p] for _, p in pairs],
            _edit(features, pairs, strength),
            1,
            first_logits=take,
            progress=False,
            alike=_alike(pairs),
        )
        return contrasts

    return ask


def _edit(features: Steerable, pairs: Sequence[Pair], strength: float) -> Edit:
    """The edit that steers row i with the feature of pair i."""
    which = torch.tensor([0 if who is None else who for who, _ in pairs])
    strengths = torch.tensor([0.0 if who is None else strength for who, _ in pairs])
    return features.edit(which, strengths)


def _alike(pairs: Sequence[Pair]) -> list[int]:
    """A number for each row, the same for rows that are edited alike."""
    return [-1 if who is None else who for who, _ in pairs]


def _check(lm: LanguageModel, features: Steerable, sets: Mapping[str, Prompts]) -> None:
    """Refuse features of another model, and prompts that are in both sets.

    Raises:
        MelboError: There are such features or prompts.
    """
    features.check_model(lm)
    used = sets["validation"].tokens
    refuse_reused(sets["test"], used, "test", "is one of the validation prompts")
