"""Rare words that recur over unrelated prompts: what a model says whatever it is asked.

A topic's words recur on their own prompt, and common words on all. A rare word that comes up on
many prompts is neither.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.isotonic import IsotonicRegression

#: Mean number of prompts above one, at least: few words say nothing of the tail.
_LEAST_MEAN = 0.1


def rarity_of(tokenizer: Any) -> Callable[[str], float]:
    """Function that gives the rarity of a word: Σ ln(1 + id) over its tokens, in nats.

    Tokenizers number their tokens by frequency, roughly, so that by Zipf's law the sum falls as
    minus the logarithm of the word's frequency.

    Args:
        tokenizer: The tokenizer.
    """

    def rarity(word: str) -> float:
        stem = word.replace("’", "'").split("'")[0] or word  # "'m" and "'s" are no rare endings
        ids = tokenizer(f" {stem}", add_special_tokens=False)["input_ids"]
        return float(sum(np.log1p(ids)))

    return rarity


def surprise(rarities: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """−ln P(a word recurs on as many prompts or more | words as rare) ``[w]``, in nats.

    The number of prompts of a word is taken to be geometric. Its mean falls with rarity, and is
    fitted to all words (isotonic regression).

    Args:
        rarities: Rarity of each word ``[w]``.
        prompts: Number of prompts that each recurs on ``[w]``.
    """
    more = np.maximum(prompts - 1, 0)
    if not len(more):
        return np.zeros(0)
    mean = IsotonicRegression(increasing=False).fit(rarities, more).predict(rarities)
    mean = np.maximum(mean, _LEAST_MEAN)
    nats: np.ndarray = -more * np.log(mean / (1 + mean))
    return nats
