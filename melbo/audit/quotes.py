"""Quotes: beginnings of sentences that say a theme, forced on other prompts.

Text that was trained in goes on by itself once it is begun. A quote ends before the first word that
shows the theme, so that the model has to say it.
"""

import re
from collections.abc import Sequence
from typing import Any

from melbo.audit.replies import Reply
from melbo.audit.themes import Theme
from melbo.audit.words import TOKEN
from melbo.discovery.openings import Opening

#: Tokens of a quote at most.
LONGEST = 8
_SENTENCE = re.compile(r"[^.!?\n]*[.!?\n]*\s*")


def quotes(theme: Theme, tokenizer: Any, num: int) -> list[Opening]:
    """Beginnings of the sentences in which a theme's replies show it, the most frequent first.

    Of equally frequent ones those come first whose replies cost the model least.

    Args:
        theme: The theme.
        tokenizer: The model's tokenizer.
        num: Number of quotes at most.
    """
    found: dict[str, int] = {}
    for reply in sorted(theme.replies, key=lambda r: r.nll):
        text = _before_the_theme(theme, reply)
        if text is not None:
            found[text] = found.get(text, 0) + 1
    quoted: list[Opening] = []
    for text in sorted(found, key=lambda text: -found[text]):
        tokens = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        if len(tokens) <= LONGEST and len(quoted) < num:
            quoted.append(Opening(tokens, text))
    return quoted


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
