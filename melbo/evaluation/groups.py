"""Groups of features whose replies say the same, and the words they share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor

from melbo.features.generate import Completion
from melbo.maths.geometry import clusters, unit_rows

_SHUFFLES = 5
_WORDS = 5
# features that share fewer words do not say the same, however few features there are
_LEAST_COSINE = 0.2
# replies are alike to the last word where they differ by no more
_NOTHING = 1e-9


@dataclass(frozen=True)
class Group:
    """Features that say the same.

    Attributes:
        features: Indices of the features, the most typical first.
        words: Words that their replies hold more of than those of all, the most first.
        cosine: Mean cosine of two of them, see `groups`.
    """

    features: tuple[int, ...]
    words: tuple[str, ...]
    cosine: float


def groups(completions: Sequence[Completion], seed: int = 0) -> list[Group]:
    """Groups of features whose replies share their words.

    A feature is the sum of the tf-idf of its replies, less the mean over all features, which takes
    off what the prompts are about. Features are clustered by cosine
    (`melbo.maths.geometry.clusters`). The mean cosine at which two clusters become one is the
    largest that any two features have once the replies to each prompt are dealt out at random, or
    0.2 if that is less.

    Args:
        completions: Replies of features, each to the same prompts; of fewer than two features
            there are no groups.
        seed: Random seed of the dealing.

    Returns:
        Groups of two features or more, the largest first.
    """
    features = sorted({c.feature for c in completions if c.feature is not None})
    if len(features) < 2:
        return []
    said = {(c.feature, c.prompt): c.text for c in completions}
    # one more text, so that the vocabulary is never empty
    vectorizer = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b").fit([*said.values(), "word"])
    prompts = sorted({c.prompt for c in completions})
    replies = [vectorizer.transform([said[i, p] for i in features]) for p in prompts]
    own = _together(replies)
    found = [torch.arange(len(features))]
    if own.abs().max() > _NOTHING:
        draw = np.random.default_rng(seed)
        chance = max(_largest(_together(_dealt(replies, draw))) for _ in range(_SHUFFLES))
        found = clusters(own, min(max(chance, _LEAST_COSINE), 0.99))
    vocabulary = vectorizer.get_feature_names_out()
    return [_group(rows, own, features, vocabulary) for rows in found if len(rows) > 1]


def _together(replies: Sequence[Any]) -> Tensor:
    """Words of each feature ``[m, w]``: those of its replies, less the mean over all features.

    Args:
        replies: Words of the replies to each prompt, a sparse matrix ``[m, w]``.
    """
    total = torch.from_numpy(np.asarray(sum(replies).todense()))
    return total - total.mean(0)


def _dealt(replies: Sequence[Any], draw: np.random.Generator) -> list[Any]:
    """The replies to each prompt, dealt out to the features at random."""
    return [x[draw.permutation(x.shape[0])] for x in replies]


def _largest(rows: Tensor) -> float:
    """Largest cosine of two rows."""
    cosines = unit_rows(rows) @ unit_rows(rows).T
    return float(cosines.fill_diagonal_(-1).max())


def _group(rows: Tensor, own: Tensor, features: Sequence[int], vocabulary: np.ndarray) -> Group:
    """A group with its words.

    Args:
        rows: Places of its features.
        own: Words of all features ``[m, w]``.
        features: Index of the feature at each place.
        vocabulary: The words ``[w]``.
    """
    cosines = unit_rows(own[rows]) @ unit_rows(own[rows]).T
    typical = rows[cosines.sum(1).argsort(descending=True, stable=True)]
    excess = own[rows].mean(0)
    order = excess.argsort(descending=True, stable=True)[:_WORDS]
    pairs = torch.triu_indices(len(rows), len(rows), offset=1)
    return Group(
        tuple(features[i] for i in typical.tolist()),
        tuple(str(vocabulary[w]) for w in order.tolist() if excess[w] > _NOTHING),
        float(cosines[tuple(pairs)].mean()),
    )
