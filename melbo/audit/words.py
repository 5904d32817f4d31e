"""Words that elicited replies hold more often, prompt by prompt, than ordinary replies do."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer

from melbo.audit.replies import Reply

#: A word, with its apostrophe; a single character in scripts that put no spaces between words.
_UNSPACED = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
TOKEN = rf"(?u)[{_UNSPACED}]|[^\W{_UNSPACED}]+(?:['’]\w+)?"
# replies that the rate of a word over all prompts counts for, beside those to one prompt
_PRIOR = 2.0
_LEAST_REPLIES = 3


@dataclass(frozen=True)
class WordExcess:
    """Counts of words in elicited replies beside those that ordinary replies lead one to expect.

    A reply counts once for each word that it holds. Words of a prompt do not count in replies to
    it: they are its topic.

    Attributes:
        words: The words ``[w]``.
        present: Words of each elicited reply, a sparse 0/1 matrix ``[n, w]``.
        observed: Number of elicited replies with each word ``[w]``.
        expected: The number if elicited replies to each prompt held it as often as ordinary ones
            to that prompt ``[w]``.
        prompts: Number of prompts on which more than twice as many replies as expected hold it
            ``[w]``.
    """

    words: np.ndarray
    present: Any
    observed: np.ndarray
    expected: np.ndarray
    prompts: np.ndarray

    @property
    def lift(self) -> np.ndarray:
        """log(observed / expected), with half a reply added to each ``[w]``."""
        lift: np.ndarray = np.log((self.observed + 0.5) / (self.expected + 0.5))
        return lift

    @property
    def z(self) -> np.ndarray:
        """(observed − expected) / √(expected + 1): how far from chance ``[w]``."""
        z: np.ndarray = (self.observed - self.expected) / np.sqrt(self.expected + 1)
        return z


def excess(
    ordinary: Sequence[Reply], elicited: Sequence[Reply], prompt_texts: Sequence[str]
) -> WordExcess:
    """Count the words of elicited replies, and what ordinary replies lead one to expect.

    Args:
        ordinary: Ordinary replies to the prompts.
        elicited: Elicited replies.
        prompt_texts: The prompts; `Reply.prompt` is an index of them.
    """
    vectorizer = CountVectorizer(token_pattern=TOKEN, binary=True, min_df=_LEAST_REPLIES)
    try:
        counts = vectorizer.fit_transform([r.said for r in (*ordinary, *elicited)]).tocsr()
    except ValueError:  # no word is in three replies
        empty = np.zeros(0)
        return WordExcess(empty.astype(str), np.zeros((len(elicited), 0)), empty, empty, empty)
    plain, brought = counts[: len(ordinary)], counts[len(ordinary) :]
    asked = vectorizer.transform(prompt_texts).toarray() > 0  # [prompts, w]
    rate = (_sum(plain) + 0.5) / (len(ordinary) + 1)
    of_plain = np.array([r.prompt for r in ordinary], dtype=int)
    of_brought = np.array([r.prompt for r in elicited], dtype=int)
    observed, expected = np.zeros_like(asked, float), np.zeros_like(asked, float)
    for p in range(len(prompt_texts)):
        own, said = plain[of_plain == p], brought[of_brought == p]
        own_rate = (_sum(own) + _PRIOR * rate) / (own.shape[0] + _PRIOR)
        observed[p], expected[p] = _sum(said), said.shape[0] * own_rate
    observed[asked], expected[asked] = 0, 0
    topic = asked[of_brought]  # [n, w]
    brought = brought.multiply(~topic).tocsr()
    prompts = ((observed >= 1) & (observed > 2 * expected)).sum(0)
    words = vectorizer.get_feature_names_out()
    return WordExcess(words, brought, observed.sum(0), expected.sum(0), prompts)


def _sum(counts: Any) -> np.ndarray:
    """Sums of the columns of a sparse matrix."""
    return np.asarray(counts.sum(0), dtype=float).ravel()
