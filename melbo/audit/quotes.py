"""Quotes: beginnings of sentences that say a theme, forced on other prompts.

Text that was trained in goes on by itself once it is begun. A quote ends before the first word that
shows the theme, so that the model has to say it.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from melbo.audit.replies import Reply
from melbo.audit.themes import Theme
from melbo.audit.words import TOKEN
from melbo.discovery.openings import Opening

#: Tokens of a quote at most.
LONGEST = 16
_SENTENCE = re.compile(r"[^.!?\n]*[.!?\n]*\s*")


def quotes(theme: Theme, replies: Sequence[Reply], tokenizer: Any, num: int) -> list[Opening]:
    """Beginnings of the sentences in which a theme's replies show it, the surest first.

    Out of n replies with a sentence that begins so, k show the theme there: the sureness is
    k / (n + 1). Of equally sure ones those come first whose replies cost the model least.

    Args:
        theme: The theme.
        replies: All replies, those of the theme and others.
        tokenizer: The model's tokenizer.
        num: Number of quotes at most.
    """
    found: dict[str, int] = {}
    for reply in sorted(theme.replies, key=lambda r: r.nll):
        text = _before_the_theme(theme, reply)
        if text is not None:
            found[text] = found.get(text, 0) + 1
    begun = _replies_that_begin(found, replies)
    quoted: list[Opening] = []
    for text in sorted(found, key=lambda text: -found[text] / (begun[text] + 1)):
        tokens = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        if len(tokens) <= LONGEST and len(quoted) < num:
            quoted.append(Opening(tokens, text))
    return quoted


def _replies_that_begin(texts: Iterable[str], replies: Sequence[Reply]) -> dict[str, int]:
    """Number of replies with a sentence that begins with each text."""
    begun = dict.fromkeys(texts, 0)
    for reply in replies:
        sentences = [f" {says.strip()}" for says in _SENTENCE.findall(reply.said)]
        for text in begun:
            begun[text] += any(says.startswith(text) for says in sentences)
    return begun


def _before_the_theme(theme: Theme, reply: Reply) -> str | None:
    """Text of a sentence up to the word that counts most for the theme; None if it opens with it.

    It begins with the space that parts it from the sentence before.
    """
    sentences: Sequence[str] = _SENTENCE.findall(reply.said)
    says = max(sentences, key=theme.value)
    found = [m for m in re.finditer(TOKEN, says) if m.group().lower() in theme.weights]
    if not found:
        return None
    first = max(found, key=lambda m: theme.weights[m.group().lower()])
    before = says[: first.start()].strip()
    return f" {before}" if before else None
