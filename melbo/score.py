"""What a completion is worth: how new, how likely, how repetitive; and the flag that follows."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor

from .generate import Completion, Completions, batches_that_fit
from .model import LanguageModel
from .progress import track
from .prompts import Prompts, pad_rows
from .shared_prompt import selectable

Flag = Literal["active", "inert", "broken"]

#: A feature is inert when its replies share this much of their words (tf-idf cosine) with the unsteered ones.
INERT_SIMILARITY = 0.9
#: A reply is broken when more than this share of its 4-grams are repeats …
BROKEN_REPETITION = 0.3
#: … or when the unsteered model finds its tokens less likely than this on average (nats).
BROKEN_NLL = 4.0
#: Weight of the reply's mean negative log-likelihood in `novel_yet_fluent` (METHOD §5 (vi)).
NLL_WEIGHT = 0.15


def novelty(completions: Completions) -> list[float]:
    """1 − tf-idf cosine between each completion and the unsteered one to the same prompt; the vocabulary weights are this table's own."""
    rows = list(completions)
    return _novelty(rows, _words([c.text for c in rows]))


def _words(texts: Sequence[str]) -> Any:
    """tf-idf of each text, a sparse matrix of unit rows."""
    return TfidfVectorizer(token_pattern=r"(?u)\b\w+\b").fit_transform([*texts, "word"])[:-1]  # never an empty vocabulary


def _novelty(rows: Sequence[Completion], words: Any) -> list[float]:
    plain = {c.prompt: i for i, c in enumerate(rows) if c.kind == "unsteered"}
    return [1 - _cosine(words[i], words[plain[c.prompt]], c.text == rows[plain[c.prompt]].text) for i, c in enumerate(rows)]


def _cosine(a, b, same: bool) -> float:
    return 1.0 if same else float((a @ b.T).sum())


def repetition(tokens: Sequence[int], n: int = 4) -> float:
    """Share of a reply's n-grams that it has said before, 0 to 1; 0 for a reply shorter than n + 1 tokens."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if len(grams) > 1 else 0.0


def nll(lm: LanguageModel, prompts: Prompts, completions: Sequence[Completion], batch_size: int = 32, progress: bool = True) -> list[float]:
    """Mean negative log-likelihood of each completion's tokens under the unsteered model, given its prompt, in nats a token.

    Each prompt runs once and the replies to it share its keys and values, where the model's cache can be shared. Batches are halved when
    memory runs out.

    Raises:
        MelboError: Memory runs out on a single row.
    """
    alike: dict[tuple[int, tuple[int, ...]], list[int]] = {}  # many vectors say the same
    for i, c in enumerate(completions):
        alike.setdefault((c.prompt, c.tokens), []).append(i)
    found = [0.0] * len(completions)
    with track(len(alike), "fluency", progress) as bar, torch.no_grad():
        for p in sorted({prompt for prompt, _ in alike}):
            to_prompt = sorted((rows[0] for (prompt, _), rows in alike.items() if prompt == p), key=lambda i: len(completions[i].tokens))
            head = torch.tensor([prompts.tokens[p]], device=lm.device)
            prefix = _shareable_prefix(lm, head)

            def run(batch: list[int], head: Tensor = head, prefix: Any = prefix) -> None:
                for i, cost in zip(batch, _token_nll(lm, head, prefix, [completions[i].tokens for i in batch]), strict=True):
                    for same in alike[completions[i].prompt, completions[i].tokens]:
                        found[same] = cost

            for done in batches_that_fit([to_prompt], batch_size, run):
                bar.update(done)
    return found


def coherent(lm: LanguageModel, prompts: Sequence[Prompts], completions: Sequence[Completion]) -> list[bool]:
    """Of each completion, whether it is not broken: the unsteered model finds it likely enough, and it does not repeat itself.

    Args:
        lm: The model.
        prompts: The prompts in one wording or more; likely enough after one of them will do.
        completions: The completions.
    """
    costs = [min(of) for of in zip(*(nll(lm, some, completions, progress=False) for some in prompts), strict=True)]
    return [cost <= BROKEN_NLL and repetition(c.tokens) <= BROKEN_REPETITION for cost, c in zip(costs, completions, strict=True)]


def _shareable_prefix(lm: LanguageModel, head: Tensor) -> Any:
    """The forward pass over a prompt ``[1, T]`` with its cache, or None where the cache cannot be copied for several replies."""
    prefix = lm.model(input_ids=head, use_cache=True)
    return prefix if selectable(getattr(prefix, "past_key_values", None)) else None


def _token_nll(lm: LanguageModel, head: Tensor, prefix: Any, replies: Sequence[Sequence[int]]) -> list[float]:
    """Mean cost of each reply after a prompt ``head`` ``[1, T]`` whose forward pass was ``prefix`` (None: run it again with each reply)."""
    ids, mask = pad_rows(replies, lm.pad, side="right")
    ids, mask = ids.to(lm.device), mask.to(lm.device)
    heads = head.expand(len(ids), -1)
    seen = torch.cat([torch.ones_like(heads), mask.long()], 1)
    if prefix is None:
        logits = lm.model(input_ids=torch.cat([heads, ids], 1), attention_mask=seen, use_cache=False).logits[:, head.shape[1] - 1 : -1]
    else:
        logits = prefix.logits[:, -1:].expand(len(ids), -1, -1)
        if ids.shape[1] > 1:
            cache = copy.deepcopy(prefix.past_key_values)  # a forward pass writes into it
            cache.batch_repeat_interleave(len(ids))
            logits = torch.cat([logits, lm.model(input_ids=ids[:, :-1], attention_mask=seen[:, :-1], past_key_values=cache).logits], 1)
    ids, mask = ids.to(logits.device), mask.to(logits.device)
    cost = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids.flatten(), reduction="none").view_as(ids)
    return ((cost * mask).sum(1) / mask.sum(1)).tolist()


@dataclass(frozen=True)
class Scores:
    """What a vector does on one set of prompts, averaged over them. ``contrast`` is None when no pair was given."""

    novel: float
    novelty: float
    nll: float
    repetition: float
    kl: float
    contrast: float | None
    flag: Flag


class FirstToken:
    """Scores of each row's first-token logits against the unsteered row of the same prompt, one vocabulary at a time.

    Args:
        rows_per_prompt: Rows of a table (see `melbo.generate`) that belong to a prompt.
        pair: Two tokens a and b whose logits are compared, a − b.
    """

    def __init__(self, rows_per_prompt: int, pair: tuple[int, int] | None) -> None:
        self.rows_per_prompt, self.pair = rows_per_prompt, pair
        self.unsteered: dict[int, Tensor] = {}
        self.kl: dict[int, float] = {}
        self.contrast: dict[int, float] = {}
        self.overflowed: set[int] = set()  # rows whose logits are not finite

    def take(self, row: int, logits: Tensor) -> None:
        """Take note of the logits ``[vocabulary]`` of a row; the unsteered row of a prompt comes first."""
        prompt, place = divmod(row, self.rows_per_prompt)
        if (logits.isnan() | logits.isposinf()).any():  # −inf is how some models mask words
            self.overflowed.add(row)
            logits = torch.zeros_like(logits)
        if self.pair is not None:
            self.contrast[row] = (logits[self.pair[0]] - logits[self.pair[1]]).item()
        if place == 0:  # the unsteered row leads each prompt's rows, in the table and in the stream
            self.unsteered[prompt] = logits
        self.kl[row] = kl(logits, self.unsteered[prompt])


class Judged:
    """Every completion of a table with what it is worth.

    Args:
        lm: The model.
        prompts: What was replied to.
        table: The completions.
        first: What their first tokens were, taken down while they were generated; None where that is not asked for, and KL is NaN.
        progress: Draw a bar.
    """

    def __init__(self, lm: LanguageModel, prompts: Prompts, table: Completions, first: FirstToken | None, progress: bool = True) -> None:
        rows = list(table)
        self.first, self._words = first, _words([c.text for c in rows])
        self._novelty, self._nll = _novelty(rows, self._words), nll(lm, prompts, rows, progress=progress)
        self._repetition = [repetition(c.tokens) for c in rows]
        self._at = {(c.kind, c.feature, c.prompt): i for i, c in enumerate(rows)}

    def scores(self, kind: str, feature: int | None, prompts: Sequence[int]) -> Scores:
        """Of one vector on some of the prompts."""
        at, first = [self._at[kind, feature, p] for p in prompts], self.first
        new, cost, repeats = ([values[i] for i in at] for values in (self._novelty, self._nll, self._repetition))
        return Scores(
            novel=mean([novel_yet_fluent(n, c) for n, c in zip(new, cost, strict=True)]),
            novelty=mean(new),
            nll=mean(cost),
            repetition=mean(repeats),
            kl=mean([first.kl[i] for i in at]) if first else math.nan,
            contrast=mean([first.contrast[i] for i in at]) if first and first.pair is not None else None,
            flag=flag(new, cost, repeats, [first is not None and i in first.overflowed for i in at]),
        )

    def distinct(self, features: Sequence[int], prompts: Sequence[int]) -> float:
        """How many different things features say: 1 / mean tf-idf cosine over all pairs of them, a feature with itself included.

        n if no two share a word, 1 if all say the same (the diversity of order two of similar species, Leinster & Cobbold 2012); cosines are
        averaged over prompts. 0 for no features.
        """
        if not features:
            return 0.0
        return 1 / mean([_alike(self._words[[self._at["feature", i, p] for i in features]]) for p in prompts])


def distinct(texts: Sequence[str]) -> float:
    """How many different replies there are, as `Judged.distinct`; the weights of words are those of these texts."""
    return 1 / _alike(_words(texts)) if texts else 0.0


def _alike(words: Any) -> float:
    """Mean cosine over all pairs of rows, a row with itself included."""
    cosines = (words @ words.T).toarray()
    empty = cosines.diagonal() == 0  # replies without a word are all alike
    return float((cosines + np.outer(empty, empty)).mean())


def mean(values: Sequence[float]) -> float:
    """The mean of one number or more."""
    return sum(values) / len(values)


def novel_yet_fluent(novelty: float, nll: float) -> float:
    """Novelty less 0.15 × negative log-likelihood: says something else, and something the model would find sayable."""
    return novelty - NLL_WEIGHT * nll


def flag(novelty: Sequence[float], nll: Sequence[float], repetition: Sequence[float], overflowed: Sequence[bool]) -> Flag:
    """What a feature does over several prompts: nothing (``inert``), damage (``broken``, on most prompts) or something (``active``)."""
    if sum(novelty) / len(novelty) <= 1 - INERT_SIMILARITY:
        return "inert"
    damaged = [o or n > BROKEN_NLL or r > BROKEN_REPETITION for n, r, o in zip(nll, repetition, overflowed, strict=True)]
    return "broken" if sum(damaged) * 2 > len(damaged) else "active"


def kl(steered: Tensor, unsteered: Tensor) -> float:
    """KL(steered ‖ unsteered) of two next-token distributions given by logits ``[vocabulary]``, in nats."""
    p, q = steered.double().log_softmax(-1), unsteered.double().log_softmax(-1)
    return torch.where(p > -torch.inf, p.exp() * (p - q), 0.0).sum().item()
