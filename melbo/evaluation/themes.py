"""Theme score: the share of features whose replies can be told from all others by counted words.

No judge is asked: it is M5 of the benchmark (docs/method.md §8, M5), a feature at a time.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binom
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB

from melbo.errors import MelboError
from melbo.features.generate import Completions

_FOLDS = 2
_LEVEL = 0.01
_SHUFFLES = 20


@dataclass(frozen=True)
class Themes:
    """The features that have a theme.

    Attributes:
        hits: Number of each feature's held-out replies that are recognised as its own ``[m]``.
        replies: Number of replies of each feature.
        chance: Share of other replies that are taken for each feature's, the probability of a hit
            by chance ``[m]``.
        themed: Whether each feature has so many hits that chance would give as many with a
            probability below 1 % ``[m]``.
        distinct: Number of features that can be told apart, the unsteered model being one: exp of
            the mutual information between a reply's feature and the one it is taken for, less that
            of shuffled labels (docs/method.md §8, M5). With few replies the correction is large:
            compare sets of one size.
    """

    hits: tuple[int, ...]
    replies: int
    chance: tuple[float, ...]
    themed: tuple[bool, ...]
    distinct: float

    @property
    def score(self) -> float:
        """Share of features with a theme."""
        return sum(self.themed) / len(self.themed)

    def describe(self) -> dict[str, Any]:
        """All of it, JSON-able."""
        return {**vars(self), "score": self.score}


def themes(completions: Completions, kind: str = "feature", seed: int = 0) -> Themes:
    """Recognise each reply's feature from replies to other prompts.

    Prompts are cut in two. Naive Bayes on counts of words learns all features and the unsteered
    model from the replies to one half, and says whose the replies to the other half are; and the
    other way round. A feature has a theme if its replies are recognised more often than other
    replies are mistaken for them.

    Args:
        completions: Table of `melbo.generate` on four prompts or more.
        kind: ``"feature"``, or ``"control"`` for the theme score of random features.
        seed: Random seed of the cut, and of the shuffles that correct ``distinct``.

    Raises:
        MelboError: There are too few prompts, or no replies of this kind.
    """
    rows = [c for c in completions if c.kind in (kind, "unsteered")]
    prompts = sorted({c.prompt for c in rows})
    features = sorted({c.feature for c in rows if c.feature is not None})
    if len(prompts) < 2 * _FOLDS or not features:
        raise MelboError(
            f"got replies of {len(features)} features to {len(prompts)} prompts: "
            f"expected one or more, and {2 * _FOLDS} prompts or more"
        )
    # the unsteered model is label 0: naive Bayes takes the first of equals
    label = np.array([0 if c.feature is None else 1 + features.index(c.feature) for c in rows])
    prompt = np.array([prompts.index(c.prompt) for c in rows])
    counts = _counts([c.text for c in rows])
    generator = np.random.default_rng(seed)
    fold = generator.permutation(len(prompts)) % _FOLDS
    taken_for = _recognise(counts, label, fold[prompt])
    own = range(1, len(features) + 1)
    hits = [int((taken_for[label == i] == i).sum()) for i in own]
    # with one more mistake than was seen, so that none is impossible
    chance = [
        (1 + int((taken_for[label != i] == i).sum())) / (1 + int((label != i).sum())) for i in own
    ]
    replies = len(prompts)
    themed = [bool(binom.sf(h - 1, replies, q) < _LEVEL) for h, q in zip(hits, chance, strict=True)]
    shuffled = [_information(generator.permutation(label), taken_for) for _ in range(_SHUFFLES)]
    distinct = math.exp(max(0.0, _information(label, taken_for) - float(np.mean(shuffled))))
    return Themes(tuple(hits), replies, tuple(chance), tuple(themed), distinct)


def _counts(texts: list[str]) -> Any:
    """Counts of words in each text, a sparse matrix; texts without a word are alike."""
    vectorizer = CountVectorizer(token_pattern=r"(?u)\b\w+\b")
    return vectorizer.fit_transform([t if re.search(r"\w", t) else "(no word)" for t in texts])


def _recognise(counts: Any, label: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Label that a classifier fitted on the other fold gives each row."""
    taken_for = np.empty_like(label)
    for f in range(_FOLDS):
        classifier = MultinomialNB(alpha=0.1, fit_prior=False)
        classifier.fit(counts[fold != f], label[fold != f])
        taken_for[fold == f] = classifier.predict(counts[fold == f])
    return taken_for


def _information(a: np.ndarray, b: np.ndarray) -> float:
    """Mutual information of two labellings, in nats."""
    joint = np.zeros((max(a) + 1, max(b) + 1))
    np.add.at(joint, (a, b), 1 / len(a))
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    there = joint > 0
    return float((joint[there] * np.log(joint[there] / independent[there])).sum())
