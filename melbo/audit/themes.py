"""Themes: groups of elicited replies that share words which ordinary replies lack."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.cluster import AgglomerativeClustering
from sklearn.decomposition import NMF
from sklearn.preprocessing import normalize

from melbo.audit.replies import Reply, fluent_and_different
from melbo.audit.words import TOKEN, WordExcess, excess
from melbo.maths.statistics import mean

#: Number of groups that replies are first put into, at most, and distinctive words for each; groups
#: that say the same are merged.
GROUPS, WORDS_A_GROUP = 48, 4
#: Number of prompts on which a word, and a theme, has to recur.
LEAST_PROMPTS = 3
#: Share of ordinary replies that a theme may be recognised in by words that are not rare.
FALSE_SHARE = 0.1
# words further from chance than this make groups, or more surprising, in nats
_Z, _SURPRISE = 1.5, 3.0
# part of what a reply says that one group has to account for, for the reply to belong to it
_OWN = 0.5
# share of each other's replies that two groups recognise, from which they are one theme
_SAME = 0.4
_NAMED = 5
# letters of a word, at least, and of an ending, at most, for two words to be forms of one
_STEM, _ENDING = 3, 2


@dataclass(frozen=True)
class Theme:
    """Replies that have distinctive words in common.

    Attributes:
        replies: The replies, those first that show it most.
        weights: Log-odds of each distinctive word, as it tells these replies from others.
        threshold: Sum of weights from which a reply shows the theme.
        lift: Mean log-lift of its words over ordinary replies, by how much each counts.
    """

    replies: tuple[Reply, ...]
    weights: dict[str, float]
    threshold: float
    lift: float

    @cached_property
    def words(self) -> list[str]:
        """Its most distinctive words, first to last."""
        return sorted(self.weights, key=lambda w: -self.weights[w])[:_NAMED]

    @property
    def name(self) -> str:
        """Its most distinctive words in a row, without further forms of one of them."""
        named: list[str] = []
        for word in self.words:
            if not any(_alike_words(word, other) for other in named):
                named.append(word)
        return ", ".join(named)

    @property
    def prompts(self) -> int:
        """Number of prompts that it was said to."""
        return len({r.prompt for r in self.replies})

    @property
    def candidates(self) -> list[tuple[str, int]]:
        """Elicitor and number of the candidates that said it, the most frequent first."""
        counts: dict[tuple[str, int], int] = {}
        for r in self.replies:
            counts[r.elicitor, r.candidate] = counts.get((r.elicitor, r.candidate), 0) + 1
        return sorted(counts, key=lambda who: -counts[who])

    @property
    def nll(self) -> float:
        """Mean cost of its replies, in nats a token."""
        return mean([r.nll for r in self.replies])

    @property
    def ratio(self) -> float | None:
        """Mean log-likelihood ratio of its replies; None where there is no base or reference."""
        ratios = [r.ratio for r in self.replies if r.ratio is not None]
        return mean(ratios) if ratios else None

    def value(self, text: str) -> float:
        """Sum of the weights of the words that a text holds."""
        return sum(self.weights.get(word, 0.0) for word in words_of(text))

    def shown(self, text: str) -> bool:
        """Tell whether a reply shows the theme."""
        return self.value(text) >= self.threshold


def _alike_words(word: str, other: str) -> bool:
    """Tell whether one word is the other with an ending."""
    short, long = sorted((word, other), key=len)
    return len(short) >= _STEM and long.startswith(short) and len(long) - len(short) <= _ENDING


def words_of(text: str) -> set[str]:
    """Different words of a text, in lower case."""
    return set(re.findall(TOKEN, text.lower()))


def themes(
    ordinary: Sequence[Reply],
    elicited: Sequence[Reply],
    prompt_texts: Sequence[str],
    rarity: Callable[[str], float],
    seed: int = 0,
) -> list[Theme]:
    """Group elicited replies by words that recur over prompts and that ordinary replies lack.

    Replies are rows of words, each weighted by its log-lift over ordinary replies to the same
    prompt and by its rarity. Non-negative matrix factorisation makes groups, groups with the same
    words are merged, and one that does not recur over prompts is dropped. Broken replies, and equal
    ones to one prompt, do not count.

    Args:
        ordinary: Ordinary replies: the model's own, or those of a base model.
        elicited: Replies of all candidates of all elicitors.
        prompt_texts: The prompts; `Reply.prompt` is an index of them.
        rarity: Rarity of a word (see `melbo.audit.rarity.rarity_of`).
        seed: Random seed.

    Returns:
        The themes, in no order.
    """
    different = fluent_and_different(elicited)
    counted = excess(ordinary, different, prompt_texts, rarity)
    elicited_more = (counted.prompts >= LEAST_PROMPTS) & (counted.z > _Z) & (counted.ratio > 0)
    distinctive = elicited_more | (
        (counted.recurs >= LEAST_PROMPTS) & (counted.surprise > _SURPRISE)
    )
    if not distinctive.any():
        return []

    def theme(rows: np.ndarray) -> Theme | None:
        return _theme(different, rows, ordinary, counted, distinctive)

    groups = _groups(counted, distinctive, seed)
    found = [(rows, t) for rows in groups if (t := theme(rows)) is not None]
    again = [theme(np.concatenate(rows)) for rows in _alike(found)]
    return [t for t in again if t is not None and t.prompts >= LEAST_PROMPTS]


def _alike(found: Sequence[tuple[np.ndarray, Theme]]) -> list[list[np.ndarray]]:
    """Groups that recognise each other's replies, put together."""
    shares = [[mean([t.shown(r.said) for r in o.replies]) for _, o in found] for _, t in found]
    shown = np.array(shares)
    if len(found) < 2:
        return [[rows] for rows, _ in found]
    clustering = AgglomerativeClustering(
        n_clusters=None, metric="precomputed", linkage="average", distance_threshold=1 - _SAME
    )
    near = np.maximum(shown, shown.T)
    np.fill_diagonal(near, 1.0)
    label = clustering.fit_predict(1 - near).tolist()
    return [
        [rows for (rows, _), own in zip(found, label, strict=True) if own == g]
        for g in sorted(set(label))
    ]


def _groups(counted: WordExcess, distinctive: np.ndarray, seed: int) -> list[np.ndarray]:
    """Rows of each group of replies, those first that belong to it most."""
    present = csr_matrix(counted.present[:, distinctive], dtype=float)
    frequency = np.asarray(present.sum(0)).ravel()
    rarity = np.log((1 + present.shape[0]) / (1 + frequency))
    weighted = present.multiply(counted.lift[distinctive] * rarity).tocsr()
    rows = normalize(weighted)
    k = min(GROUPS, max(2, len(frequency) // WORDS_A_GROUP), min(rows.shape))
    model = NMF(k, init="nndsvda", max_iter=300, tol=1e-3, random_state=seed)
    strengths = model.fit_transform(rows)  # [n, k]
    strengths = strengths * np.linalg.norm(model.components_, axis=1)
    total, first = strengths.sum(1), strengths.argmax(1)
    belongs = (total > 0.1) & (strengths.max(1) > _OWN * total)
    groups = [np.flatnonzero(belongs & (first == g)) for g in range(k)]
    return [g[np.argsort(-strengths[g, i], kind="stable")] for i, g in enumerate(groups) if len(g)]


def _theme(
    replies: Sequence[Reply],
    rows: np.ndarray,
    ordinary: Sequence[Reply],
    counted: WordExcess,
    distinctive: np.ndarray,
) -> Theme | None:
    """The theme of some rows of the replies; None where ordinary replies show it too."""
    inside = np.zeros(len(replies), dtype=bool)
    inside[rows] = True
    present = counted.present[:, distinctive]
    own = np.asarray(present[inside].sum(0), dtype=float).ravel()
    rest = np.asarray(present[~inside].sum(0), dtype=float).ravel()
    n, m = len(rows), len(replies) - len(rows)
    # a word counts as often as it tells these replies from others, elicited ones and ordinary ones
    against = np.log((own + 0.5) / (n + 1)) - np.log((rest + 0.5) / (m + 1))
    odds = np.minimum(against, counted.lift[distinctive] + 1)
    names = counted.words[distinctive]
    frequent = (own >= 2) & (odds > 0.5)
    share = own / n
    weights = {str(names[j]): float(odds[j] * np.sqrt(share[j])) for j in np.flatnonzero(frequent)}
    if not weights:
        return None
    bare = Theme((), weights, 0.0, 0.0)
    # a rare word that recurs is no accident where it stands in ordinary replies: it leaks
    rare = set(names[counted.surprise[distinctive] > _SURPRISE].tolist())
    usual = Theme((), {w: x for w, x in weights.items() if w not in rare}, 0.0, 0.0)
    limit = _limit([usual.value(r.said) for r in ordinary])
    threshold = max(limit, *weights.values())
    shown = [replies[i] for i in rows if bare.value(replies[i].said) >= threshold]
    if len(shown) < 2:
        return None
    lift = float(np.average(counted.lift[distinctive], weights=own * np.maximum(odds, 0)))
    return Theme(tuple(shown), weights, threshold, lift)


def _limit(values: Sequence[float]) -> float:
    """Value just above all but a share `FALSE_SHARE` of these."""
    if not values:
        return 0.0
    ordered = sorted(values, reverse=True)
    return float(np.nextafter(ordered[int(FALSE_SHARE * len(ordered))], np.inf))
