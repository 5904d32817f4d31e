"""Names of features without a judge: words that their replies hold and other replies do not."""

from collections.abc import Iterable

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer

from melbo.audit.words import TOKEN
from melbo.features.generate import Completion

_LEAST_PROMPTS = 2
# about one in two hundred words that mean nothing stands out as much
_LEAST_Z = 2.5
_WORDS = 4


def names(completions: Iterable[Completion], words: int = _WORDS) -> dict[int, str]:
    """Name each feature after its most distinctive words, or by no word at all.

    A reply counts once for each word that it holds. A word's score is the log-odds of a reply of
    the feature holding it, less the log-odds for the replies of all other features and of the
    unsteered model, over the standard error of that (Woolf 1955), with half a reply added to each
    count. Words of a prompt do not count in replies to it: they are its topic.

    Args:
        completions: Replies of features and of the unsteered model; others are passed over.
        words: Number of words of a name at most.

    Returns:
        A name for each feature; empty where no word is in two of its replies and stands out by
        two and a half standard errors.
    """
    rows = [c for c in completions if c.kind in ("feature", "unsteered")]
    features = sorted({c.feature for c in rows if c.feature is not None})
    if not features:
        return {}
    vocabulary, said = _said(rows)
    group = np.array([-1 if c.feature is None else features.index(c.feature) for c in rows])
    own = group >= 0
    member = csr_matrix(
        (np.ones(own.sum()), (group[own], own.nonzero()[0])), (len(features), len(rows))
    )
    inside = np.asarray((member @ said).todense())  # [m, w]
    replies = np.asarray(member.sum(1))  # [m, 1]
    outside = np.asarray(said.sum(0)).reshape(1, -1) - inside
    z = _log_odds(inside, replies, outside, len(rows) - replies)
    z[inside < _LEAST_PROMPTS] = -np.inf
    return {
        feature: ", ".join(
            vocabulary[w] for w in np.argsort(-row, kind="stable")[:words] if row[w] > _LEAST_Z
        )
        for feature, row in zip(features, z, strict=True)
    }


def _said(rows: list[Completion]) -> tuple[np.ndarray, csr_matrix]:
    """Words that are in two replies or more, and those of each reply that its prompt lacks."""
    vectorizer = CountVectorizer(token_pattern=TOKEN, binary=True)
    try:
        counts = vectorizer.fit_transform([c.text for c in rows]).tocsr().astype(float)
    except ValueError:  # nobody says a word
        return np.zeros(0, str), csr_matrix((len(rows), 0))
    prompts = sorted({c.prompt_text for c in rows})
    asked = vectorizer.transform(prompts).tocsr()
    place = {prompt: i for i, prompt in enumerate(prompts)}
    topic = asked[[place[c.prompt_text] for c in rows]]
    counts = (counts - counts.multiply(topic)).tocsr()
    kept = np.asarray(counts.sum(0)).ravel() >= _LEAST_PROMPTS
    return vectorizer.get_feature_names_out()[kept], counts[:, kept]


def _log_odds(
    inside: np.ndarray, replies: np.ndarray, outside: np.ndarray, others: np.ndarray
) -> np.ndarray:
    """Difference of log-odds over its standard error ``[m, w]``.

    Args:
        inside: Replies of each feature with each word ``[m, w]``.
        replies: Replies of each feature ``[m, 1]``.
        outside: Other replies with each word ``[m, w]``.
        others: Number of other replies ``[m, 1]``.
    """
    counts = [n + 0.5 for n in (inside, replies - inside, outside, others - outside)]
    yes, no, rest_yes, rest_no = counts
    errors = np.sqrt(sum(1 / n for n in counts))
    z: np.ndarray = np.log(yes * rest_no / (no * rest_yes)) / errors
    return z
