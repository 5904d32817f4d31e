"""Theme score: of how many features the replies can be told from everybody else's, with no judge but counted words (BENCHMARK M5, per feature)."""

import math
import re
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB

from melbo.errors import MelboError
from melbo.features.generate import Completions

_FOLDS = 2
_LEVEL = 0.01


@dataclass(frozen=True)
class Themes:
    """Which features have a theme.

    Attributes:
        hits: Of each feature, the held-out replies that are recognised as its own ``[m]``.
        replies: How many replies each has.
        chance: Of each feature, how often replies that are not its own are taken for its own; what a hit would happen by ``[m]``.
        themed: Whether the feature has so many hits that chance would give as many with probability below 1 % ``[m]``.
        distinct: exp of the mutual information between a reply's feature and the one it is taken for, less that of shuffled labels (BENCHMARK
            M5): how many features can be told apart, the unsteered model being one. With few replies the correction is large: compare sets of
            one size.
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

    def describe(self) -> dict:
        """All of it, JSON-able."""
        return {**vars(self), "score": self.score}


def themes(completions: Completions, kind: str = "feature", seed: int = 0) -> Themes:
    """Recognise each reply's feature from replies to other prompts, by naive Bayes on counts of words.

    Prompts are cut in two; a classifier of all features and the unsteered model is trained on the replies to one half and asked about the other,
    and the other way round. A feature has a theme if its replies are recognised more often than those of others are mistaken for them.

    Args:
        completions: A table of `melbo.generate` on four prompts or more.
        kind: ``"feature"``, or ``"control"`` for the theme score of random ones.
        seed: Of the cut, and of the shuffles that the bias of ``distinct`` is taken from.

    Raises:
        MelboError: Too few prompts, or none of this kind.
    """
    rows = [c for c in completions if c.kind in (kind, "unsteered")]
    prompts = sorted({c.prompt for c in rows})
    features = sorted({c.feature for c in rows if c.feature is not None})
    if len(prompts) < 2 * _FOLDS or not features:
        raise MelboError(
            f"got replies of {len(features)} features to {len(prompts)} prompts: expected one or more, and {2 * _FOLDS} prompts or more"
        )
    # the unsteered model is label 0, so that whoever says exactly the same is taken for it
    label = np.array([0 if c.feature is None else 1 + features.index(c.feature) for c in rows])
    prompt = np.array([prompts.index(c.prompt) for c in rows])
    counts = CountVectorizer(token_pattern=r"(?u)\b\w+\b").fit_transform(
        [c.text if re.search(r"\w", c.text) else "(no word)" for c in rows]
    )
    generator = np.random.default_rng(seed)
    fold = generator.permutation(len(prompts)) % _FOLDS
    taken_for = _recognise(counts, label, fold[prompt])
    m, P = len(features), len(prompts)
    hits = [int((taken_for[label == i] == i).sum()) for i in range(1, m + 1)]
    # of others' replies, with one more mistake than seen, so that it is never impossible
    chance = [
        (1 + int((taken_for[label != i] == i).sum())) / (1 + int((label != i).sum()))
        for i in range(1, m + 1)
    ]
    themed = [bool(binom.sf(h - 1, P, q) < _LEVEL) for h, q in zip(hits, chance, strict=True)]
    shuffled = [_information(generator.permutation(label), taken_for) for _ in range(20)]
    distinct = math.exp(max(0.0, _information(label, taken_for) - float(np.mean(shuffled))))
    return Themes(tuple(hits), P, tuple(chance), tuple(themed), distinct)


def _recognise(counts, label: np.ndarray, fold: np.ndarray) -> np.ndarray:
    taken_for = np.empty_like(label)
    for f in range(_FOLDS):
        classifier = MultinomialNB(alpha=0.1, fit_prior=False).fit(
            counts[fold != f], label[fold != f]
        )
        taken_for[fold == f] = classifier.predict(counts[fold == f])
    return taken_for


def _information(a: np.ndarray, b: np.ndarray) -> float:
    """Mutual information of two labellings, in nats."""
    joint = np.zeros((max(a) + 1, max(b) + 1))
    np.add.at(joint, (a, b), 1 / len(a))
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    there = joint > 0
    return float((joint[there] * np.log(joint[there] / independent[there])).sum())
