"""Scores of replies: novelty, likelihood, repetition, and the flag that follows from them."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor

from melbo.features.generate import Completion, Completions
from melbo.maths.statistics import mean
from melbo.models.decoding.decode import batches_that_fit
from melbo.models.decoding.read_replies import logits_of_replies
from melbo.models.decoding.shared_prefix import Prefix, read_prefix
from melbo.models.language_model import LanguageModel
from melbo.models.text.prompts import Prompts
from melbo.progress import track

Flag = Literal["active", "inert", "broken"]
#: The flags, best first.
FLAGS: tuple[Flag, ...] = get_args(Flag)

#: Weight of a reply's mean negative log-likelihood in `novel_yet_fluent` (docs/method.md §5).
NLL_WEIGHT = 0.15


@dataclass(frozen=True)
class Thresholds:
    """Limits beyond which replies count as unchanged or broken.

    Attributes:
        inert_similarity: Tf-idf cosine of its replies with the unsteered ones from which a feature
            is inert.
        broken_repetition: Share of repeated 4-grams above which a reply is broken.
        broken_nll: Mean negative log-likelihood a token under the unsteered model, in nats, above
            which a reply is broken.
    """

    inert_similarity: float = 0.9
    broken_repetition: float = 0.3
    broken_nll: float = 4.0

    def broken(self, nll: float, repetition: float) -> bool:
        """Tell whether a reply is broken.

        Args:
            nll: Mean negative log-likelihood a token, in nats.
            repetition: Share of repeated 4-grams.
        """
        return nll > self.broken_nll or repetition > self.broken_repetition


#: The usual thresholds.
THRESHOLDS = Thresholds()


@dataclass(frozen=True)
class Scores:
    """Scores of one vector on a set of prompts, averaged over them.

    Attributes:
        novel: Novel yet fluent (see `novel_yet_fluent`).
        novelty: 1 − tf-idf cosine with the unsteered reply.
        nll: Mean negative log-likelihood a token under the unsteered model, in nats.
        repetition: Share of 4-grams that are repeats.
        kl: KL(steered ‖ unsteered) of the first token in nats; NaN where it is not known.
        contrast: logit(A) − logit(B) of the first token; None where no pair was given.
        flag: ``"active"``, ``"inert"`` or ``"broken"`` (see `flag`).
    """

    novel: float
    novelty: float
    nll: float
    repetition: float
    kl: float
    contrast: float | None
    flag: Flag


class Judged:
    """Every reply of a table with its scores.

    Args:
        lm: The model.
        prompts: Prompts that were replied to.
        table: The replies.
        progress: Whether to draw a bar.
        thresholds: Limits beyond which replies count as unchanged or broken.
    """

    def __init__(
        self,
        lm: LanguageModel,
        prompts: Prompts,
        table: Completions,
        progress: bool = True,
        thresholds: Thresholds = THRESHOLDS,
    ) -> None:
        self._thresholds = thresholds
        self._rows = list(table)
        self._words = _words([c.text for c in self._rows])
        self._novelty = _novelty(self._rows, self._words)
        self._nll = nll(lm, prompts, self._rows, progress=progress)
        self._repetition = [repetition(c.tokens) for c in self._rows]
        self._says_nothing = [says_nothing(c.text) for c in self._rows]
        self._at = {(c.kind, c.feature, c.prompt): i for i, c in enumerate(self._rows)}

    def scores(self, kind: str, feature: int | None, prompts: Sequence[int]) -> Scores:
        """Scores of one vector on some of the prompts.

        Args:
            kind: ``"feature"``, ``"control"`` or ``"unsteered"``.
            feature: Index of the vector in its set.
            prompts: Indices of the prompts.
        """
        at = [self._at[kind, feature, p] for p in prompts]
        new, cost, repeats = (
            [values[i] for i in at] for values in (self._novelty, self._nll, self._repetition)
        )
        first = [self._rows[i].first for i in at]
        kls = [f.kl for f in first if f is not None and f.kl is not None]
        contrasts = [f.contrast for f in first if f is not None and f.contrast is not None]
        damaged = [
            self._says_nothing[i] or (f is not None and f.overflowed)
            for i, f in zip(at, first, strict=True)
        ]
        return Scores(
            novel=mean([novel_yet_fluent(n, c) for n, c in zip(new, cost, strict=True)]),
            novelty=mean(new),
            nll=mean(cost),
            repetition=mean(repeats),
            kl=mean(kls) if kls else math.nan,
            contrast=mean(contrasts) if contrasts else None,
            flag=flag(new, cost, repeats, damaged, self._thresholds),
        )

    def distinct(self, features: Sequence[int], prompts: Sequence[int]) -> float:
        """Number of different things that features say, averaged over prompts (see `distinct`).

        Args:
            features: Indices of the features; none give 0.
            prompts: Indices of the prompts.
        """
        if not features:
            return 0.0
        rows = [[self._at["feature", i, p] for i in features] for p in prompts]
        return 1 / mean([_mean_cosine(self._words[of_prompt]) for of_prompt in rows])


def distinct(texts: Sequence[str]) -> float:
    """Number of different replies: 1 / mean tf-idf cosine over all pairs.

    A reply is paired with itself too. The number is n if no two of n replies share a word, 1 if all
    say the same, 0 if there are no replies.

    Source: diversity of order two of similar species, Leinster & Cobbold (2012).
    """
    return 1 / _mean_cosine(_words(texts)) if texts else 0.0


def novelty(completions: Completions) -> list[float]:
    """1 − tf-idf cosine between each reply and the unsteered one to the same prompt.

    Weights of words are those of this table.
    """
    rows = list(completions)
    return _novelty(rows, _words([c.text for c in rows]))


def repetition(tokens: Sequence[int], n: int = 4) -> float:
    """Share of a reply's n-grams that repeat earlier ones, 0 to 1.

    Args:
        tokens: Tokens of the reply; n or fewer have no repetition.
        n: Length of an n-gram.
    """
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if len(grams) > 1 else 0.0


def says_nothing(text: str) -> bool:
    """Tell whether a reply is empty, or one word or sign over and over.

    A reply of one word is none of these. The last word may be cut short.

    Args:
        text: The reply.
    """
    parts = re.findall(r"\w+", text.lower()) or re.findall(r"\S", text)
    if not parts:
        return True
    first, *more = parts
    if more:
        return all(part == first for part in more[:-1]) and first.startswith(more[-1])
    # scripts without spaces, and words that are run together
    return re.fullmatch(r"(.+?)\1{2,}", first) is not None


def nll(
    lm: LanguageModel,
    prompts: Prompts,
    completions: Sequence[Completion],
    batch_size: int = 32,
    progress: bool = True,
) -> list[float]:
    """Mean negative log-likelihood of each reply's tokens under the unsteered model, in nats.

    Each prompt runs once and the replies to it share its keys and values, where the model's cache
    can be shared. Batches are halved when memory runs out.

    Args:
        lm: The model.
        prompts: Prompts that were replied to.
        completions: The replies.
        batch_size: Replies read together at most.
        progress: Whether to draw a bar.

    Raises:
        MelboError: Memory runs out on a single row.
    """
    # many vectors say the same
    same: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for i, c in enumerate(completions):
        same.setdefault((c.prompt, c.tokens), []).append(i)
    costs_of_all = [0.0] * len(completions)
    with track(len(same), "fluency", progress) as bar, torch.no_grad():
        for p in sorted({prompt for prompt, _ in same}):
            first = [rows[0] for (prompt, _), rows in same.items() if prompt == p]
            ids = torch.tensor([prompts.tokens[p]], device=lm.device)
            prefix = read_prefix(lm.model, ids)

            def run(batch: list[int], ids: Tensor = ids, prefix: Prefix | None = prefix) -> None:
                costs = _token_nll(lm, ids, prefix, [completions[i].tokens for i in batch])
                for i, cost in zip(batch, costs, strict=True):
                    for row in same[completions[i].prompt, completions[i].tokens]:
                        costs_of_all[row] = cost

            by_length = sorted(first, key=lambda i: len(completions[i].tokens))
            for done in batches_that_fit([by_length], batch_size, run):
                bar.update(done)
    return costs_of_all


def coherent(
    lm: LanguageModel,
    prompts: Sequence[Prompts],
    completions: Sequence[Completion],
    thresholds: Thresholds = THRESHOLDS,
) -> list[bool]:
    """Tell whether each reply is coherent: likely enough under the unsteered model, not repetitive.

    Args:
        lm: The model.
        prompts: The prompts in one wording or more; a reply that is likely enough after one of them
            is coherent.
        completions: The replies.
        thresholds: Limits beyond which a reply is broken.
    """
    wordings = [nll(lm, each, completions, progress=False) for each in prompts]
    costs = [min(both) for both in zip(*wordings, strict=True)]
    return [
        not thresholds.broken(cost, repetition(c.tokens))
        for cost, c in zip(costs, completions, strict=True)
    ]


def novel_yet_fluent(novelty: float, nll: float) -> float:
    """Novelty − 0.15 × negative log-likelihood: new, and something the model finds sayable.

    Args:
        novelty: Novelty of a reply.
        nll: Its mean negative log-likelihood a token under the unsteered model, in nats.
    """
    return novelty - NLL_WEIGHT * nll


def flag(
    novelty: Sequence[float],
    nll: Sequence[float],
    repetition: Sequence[float],
    damaged: Sequence[bool],
    thresholds: Thresholds = THRESHOLDS,
) -> Flag:
    """Flag of a feature from its replies to several prompts.

    ``"inert"``: replies are as without it. ``"broken"``: most replies are damaged. ``"active"``:
    neither.

    Args:
        novelty: Novelty of each reply.
        nll: Negative log-likelihood a token of each reply.
        repetition: Repetition of each reply.
        damaged: Whether each reply is broken whatever its scores: it says nothing (see
            `says_nothing`), or its logits were not finite.
        thresholds: Limits beyond which replies count as unchanged or broken.
    """
    if mean(novelty) <= 1 - thresholds.inert_similarity:
        return "inert"
    broken = [
        d or thresholds.broken(n, r) for n, r, d in zip(nll, repetition, damaged, strict=True)
    ]
    return "broken" if sum(broken) * 2 > len(broken) else "active"


def _token_nll(
    lm: LanguageModel, ids: Tensor, prefix: Prefix | None, replies: Sequence[Sequence[int]]
) -> list[float]:
    """Mean cost of each reply after a prompt.

    Args:
        lm: The model.
        ids: The prompt ``[1, T]``.
        prefix: Cache and logits of the prompt; None to read it again with each reply.
        replies: The replies.
    """
    logits, said, mask = logits_of_replies(lm, ids, prefix, replies)
    cost = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), said.flatten(), reduction="none"
    ).view_as(said)
    costs: list[float] = ((cost * mask).sum(1) / mask.sum(1)).tolist()
    return costs


def _words(texts: Sequence[str]) -> Any:
    """tf-idf of each text, a sparse matrix of unit rows."""
    # one more text, so that the vocabulary is never empty
    return TfidfVectorizer(token_pattern=r"(?u)\b\w+\b").fit_transform([*texts, "word"])[:-1]


def _novelty(rows: Sequence[Completion], words: Any) -> list[float]:
    """See `novelty`; ``words`` are the rows' tf-idf."""
    plain = {c.prompt: i for i, c in enumerate(rows) if c.kind == "unsteered"}

    def cosine(i: int, c: Completion) -> float:
        other = plain[c.prompt]
        return 1.0 if c.text == rows[other].text else float((words[i] @ words[other].T).sum())

    return [1 - cosine(i, c) for i, c in enumerate(rows)]


def _mean_cosine(words: Any) -> float:
    """Mean cosine over all pairs of rows, each row with itself included."""
    cosines = (words @ words.T).toarray()
    empty = cosines.diagonal() == 0  # replies without a word are all alike
    return float((cosines + np.outer(empty, empty)).mean())
