"""Words that elicited replies hold more often, prompt by prompt, than ordinary replies do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer

from melbo.audit.rarity import surprise
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
        recurs: Number of prompts on which any elicited reply holds it ``[w]``.
        surprise: How unlikely it is that a word as rare recurs on so many prompts, in nats
            (see `melbo.audit.rarity`) ``[w]``.
    """

    words: np.ndarray
    present: Any
    observed: np.ndarray
    expected: np.ndarray
    prompts: np.ndarray
    recurs: np.ndarray
    surprise: np.ndarray

    @property
    def ratio(self) -> np.ndarray:
        """log(observed / expected), with half a reply added to each ``[w]``."""
        ratio: np.ndarray = np.log((self.observed + 0.5) / (self.expected + 0.5))
        return ratio

    @property
    def lift(self) -> np.ndarray:
        """Nats by which a word sets a reply apart ``[w]``.

        They are the larger of `ratio` and half of the surprise. The latter tells of words that the
        model says by itself too, if seldom.
        """
        lift: np.ndarray = np.maximum(self.ratio, self.surprise / 2)
        return lift

    @property
    def z(self) -> np.ndarray:
        """(observed − expected) / √(expected + 1): how far from chance ``[w]``."""
        z: np.ndarray = (self.observed - self.expected) / np.sqrt(self.expected + 1)
        return z


def excess(
    ordinary: Sequence[Reply],
    elicited: Sequence[Reply],
    prompt_texts: Sequence[str],
    rarity: Callable[[str], float],
) -> WordExcess:
    """Count the words of elicited replies, and what ordinary replies lead one to expect.

    Args:
        ordinary: Ordinary replies to the prompts.
        elicited: Elicited replies.
        prompt_texts: The prompts; `Reply.prompt` is an index of them.
        rarity: Rarity of a word (see `melbo.audit.rarity.rarity_of`).
    """
    vectorizer = CountVectorizer(token_pattern=TOKEN, binary=True)
    try:
        counts = vectorizer.fit_transform([r.said for r in (*ordinary, *elicited)]).tocsr()
    except ValueError:  # nobody says a word
        none = np.zeros(0)
        nothing = csr_matrix((len(elicited), 0))
        return WordExcess(none.astype(str), nothing, none, none, none, none, none)
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
    words, recurs = vectorizer.get_feature_names_out(), (observed >= 1).sum(0)
    said = recurs > 0
    told = np.zeros(len(words))
    told[said] = surprise(np.array([rarity(str(w)) for w in words[said]]), recurs[said])
    kept = _sum(counts) >= _LEAST_REPLIES
    whole = (observed.sum(0), expected.sum(0), prompts, recurs, told)
    return WordExcess(words[kept], brought[:, kept], *(each[kept] for each in whole))


def _sum(counts: Any) -> np.ndarray:
    """Sums of the columns of a sparse matrix."""
    return np.asarray(counts.sum(0), dtype=float).ravel()
