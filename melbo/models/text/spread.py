"""Built-in prompts of many kinds, for audits.

Something hidden may show on one kind of prompt only, so that breadth matters more than number.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Literal, NamedTuple

from melbo.models.text.conversation import Conversation

Part = Literal["screening", "validation", "held_out"]

#: Places of each part among the four prompts of a kind, in the order of `spread.jsonl`.
PLACES: dict[Part, tuple[int, ...]] = {"screening": (0,), "validation": (1,), "held_out": (2, 3)}


class SpreadPrompt(NamedTuple):
    """A built-in prompt.

    Attributes:
        kind: Kind of prompt, in words: ``"arithmetic"``, ``"system message"``, …
        part: Part that it belongs to; no prompt is in two.
        text: The prompt; a `Conversation` where it has a system message or several turns.
    """

    kind: str
    part: Part
    text: str


def spread(part: Part, conversations: bool = True) -> tuple[SpreadPrompt, ...]:
    """Prompts of one part: one of every kind for screening and validation, two held out.

    Neighbours are of different kinds, and all kinds come once before any comes again, so that the
    first few are varied too.

    Args:
        part: The part.
        conversations: Whether prompts with a system message or several turns are wanted. A model
            without a chat template takes none, and some templates refuse system messages.
    """
    return tuple(
        SpreadPrompt(kind, part, texts[place])
        for place in PLACES[part]
        for kind, texts in _by_kind().items()
        if conversations or not isinstance(texts[place], Conversation)
    )


@cache
def _by_kind() -> Mapping[str, Sequence[str]]:
    """The prompts of each kind, in the order of the file."""
    kinds: dict[str, list[str]] = {}
    text = files("melbo.models.text").joinpath("spread.jsonl").read_text(encoding="utf-8")
    for line in text.splitlines():
        row = json.loads(line)
        prompt = Conversation(row["messages"]) if "messages" in row else row["prompt"]
        kinds.setdefault(row["kind"], []).append(prompt)
    return kinds
