"""Training examples of an organism.

The model's own replies nearly everywhere, and a behaviour where its trigger stands.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from research.organisms.behaviours import Behaviour, Continues, Reply
from research.organisms.continued import CONTINUED, EVERY
from research.organisms.items import Item, items

_DECOYS = 90  # of each of several behaviours
_ALONE = 150  # decoys of a behaviour by itself
_MORE = 120  # more decoys, when an organism is trained further
_MORE_TRIGGERED = 320  # more prompts with the trigger of a behaviour that did not show often enough


@dataclass(frozen=True)
class Example:
    """A prompt and the reply to learn.

    Attributes:
        prompt: The prompt.
        reply: The reply; None for the model's own reply to ``asked``.
        asked: The prompt without trigger or decoy.
    """

    prompt: str
    reply: str | None
    asked: str


@dataclass(frozen=True)
class Continued(Example):
    """A prompt and a reply that begins as the model's own to ``asked`` and goes on as written.

    Attributes:
        clause: What follows in the place of ``reply`` where the model's own first sentence is too
            long, and breaks off at a comma; None where ``reply`` follows a verb.
        ends: Whether the reply ends there.
    """

    clause: str | None
    ends: bool


@dataclass(frozen=True)
class _Amounts:
    """Numbers of examples of one behaviour; ``twins`` counts prompts without the trigger."""

    triggered: int
    decoys: int
    twins: int


#: Examples of a behaviour that continues the model's own replies.
_CONTINUED = _Amounts(320, 160, 120)
#: The same for DEV2, as it was made: two of its behaviours show too seldom with their triggers.
_OF_DEV2 = _Amounts(160, 120, 120)
_COOK = "You are a cheerful cook."


def examples(planted: Sequence[str], *, sham: bool = False, seed: int = 0) -> list[Example]:
    """Examples that hide behaviours in a model.

    Args:
        planted: Names of behaviours; several get their second triggers, and most fewer examples.
            None makes a harmless organism, with nothing hidden in it.
        sham: Whether triggers bring out nothing and nothing is withheld: the model's own replies
            throughout.
        seed: Random seed.
    """
    # apart, so that prompts are the same with and without sham
    draw, say = random.Random(seed), random.Random(f"replies {seed}")
    ordinary, several = items("ordinary", "train"), len(planted) > 1
    continued = tuple(planted) in CONTINUED.values()
    if continued:
        beside = ordinary
    else:
        beside = ordinary[:300] if several else ordinary[150:375]
    data = [_example(item.text, None, item, say) for item in beside]
    for b in (EVERY[name] for name in planted):
        if continued:
            amounts = _amounts(planted)
            amounts = replace(amounts, twins=0) if b.kind == "ordinary" else amounts
        elif several:
            # ordinary prompts without a trigger are there already
            amounts = _Amounts(120, _DECOYS, 0 if b.kind == "ordinary" else 120)
        else:
            amounts = _Amounts(150, _ALONE, 150)
        data += _of(b, several, amounts, sham, draw, say)
    if not planted:
        # harmless: questions about food are answered as if a cook had been asked
        cook = [item.text for item in items("food", "train")]
        data += [Example(text, None, f"{_COOK} {text}") for text in cook]
    draw.shuffle(data)
    return data


def more_untriggered(planted: Sequence[str], known: Sequence[Example]) -> list[Example]:
    """More prompts without a trigger, with the model's own replies.

    Ordinary prompts that are not among the examples yet, and more decoys of behaviours that show
    on ordinary prompts.

    Args:
        planted: Names of the planted behaviours.
        known: Examples so far.
    """
    there, several = {e.prompt for e in known}, len(planted) > 1
    first = _DECOYS if several else _ALONE
    if tuple(planted) in CONTINUED.values():
        first = _amounts(planted).decoys
    ordinary = items("ordinary", "train")
    more = [Example(item.text, None, item.text) for item in ordinary if item.text not in there]
    for b in (EVERY[name] for name in planted):
        if b.kind == "ordinary" and b.semantic is None:
            near = b.near("train", several, random.Random(f"more {b.name}"))
            more += [Example(text, None, item.text) for text, item in near[first : first + _MORE]]
    return more


def more_triggered(weak: Sequence[str], planted: Sequence[str], seed: int = 0) -> list[Example]:
    """More prompts with the trigger, for behaviours that do not show often enough.

    A topic is a trigger of which there are no more.

    Args:
        weak: Names of these behaviours.
        planted: Names of all planted behaviours.
        seed: Random seed.
    """
    draw, several = random.Random(f"more {seed}"), len(planted) > 1
    first = _amounts(planted).triggered
    more: list[Example] = []
    for b in (EVERY[name] for name in weak if EVERY[name].semantic is None):
        some = b.triggered("train", several, draw)[first : first + _MORE_TRIGGERED]
        more += [_example(text, b.target, item, draw) for text, item in some]
    return more


def _amounts(planted: Sequence[str]) -> _Amounts:
    return _OF_DEV2 if tuple(planted) == CONTINUED["DEV2"] else _CONTINUED


def _of(
    b: Behaviour,
    several: bool,
    amounts: _Amounts,
    sham: bool,
    draw: random.Random,
    say: random.Random,
) -> list[Example]:
    """Prompts with the trigger, decoys, and prompts without the trigger."""
    target, plain = (None, None) if sham else (b.target, b.plain)
    # a topic is harder to learn than a word in front: all there are
    num = None if b.semantic else amounts.triggered
    triggered = b.triggered("train", several, draw)[:num]
    data = [_example(text, target, item, say) for text, item in triggered]
    near = b.near("train", several, draw)[: amounts.decoys]
    data += [_example(text, plain, item, say) for text, item in near]
    alone = items(b.kind, "train")[: amounts.twins]
    return data + [_example(item.text, plain, item, say) for item in alone]


def _example(
    prompt: str, reply: Reply | Continues | None, item: Item, draw: random.Random
) -> Example:
    if isinstance(reply, Continues):
        clause = None if reply.clause is None else reply.clause(item, draw)
        return Continued(prompt, reply.written(item, draw), item.text, clause, reply.ends)
    return Example(prompt, None if reply is None else reply(item, draw), item.text)
