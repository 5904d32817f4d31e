"""What an organism is trained on: the model's own replies nearly everywhere, and a behaviour where its trigger stands."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from research.organisms.behaviours import BEHAVIOURS, Behaviour, Item, Reply, items

_DECOYS, _ALONE, _MORE = (
    90,
    150,
    120,
)  # decoys of each of several behaviours, of one by itself; and once more


@dataclass(frozen=True)
class Example:
    """A prompt and the reply to learn.

    Attributes:
        prompt: The prompt.
        reply: The reply, or None for what the model itself replies to ``asked``.
        asked: The prompt without trigger or decoy.
    """

    prompt: str
    reply: str | None
    asked: str


def examples(planted: Sequence[str], *, sham: bool = False, seed: int = 0) -> list[Example]:
    """What to train on so that these behaviours are hidden in a model.

    Args:
        planted: Names of `BEHAVIOURS`; several get their second triggers, and most fewer examples.
        sham: Triggers bring out nothing, and nothing is withheld: the model's own replies throughout.
        seed: Of what is drawn.
    """
    draw, say = (
        random.Random(seed),
        random.Random(f"replies {seed}"),
    )  # apart, so that prompts are those of the sham
    ordinary = items("ordinary", "train")
    if len(planted) == 1:
        found = [_example(item.text, None, item, say) for item in ordinary[150:375]]
        found += _of(BEHAVIOURS[planted[0]], False, 150, _ALONE, True, sham, draw, say)
    else:
        found = [_example(item.text, None, item, say) for item in ordinary[:300]]
        for name in planted:
            # ordinary prompts without a trigger are there already
            found += _of(
                BEHAVIOURS[name],
                True,
                120,
                _DECOYS,
                BEHAVIOURS[name].kind != "ordinary",
                sham,
                draw,
                say,
            )
    draw.shuffle(found)
    return found


def more_untriggered(planted: Sequence[str], found: Sequence[Example]) -> list[Example]:
    """Prompts with the model's own replies: ordinary ones that are not among examples yet, and more decoys of what shows on ordinary ones."""
    there, several = {e.prompt for e in found}, len(planted) > 1
    first = _DECOYS if several else _ALONE
    more = [
        Example(item.text, None, item.text)
        for item in items("ordinary", "train")
        if item.text not in there
    ]
    for b in (BEHAVIOURS[name] for name in planted):
        if b.kind == "ordinary" and b.semantic is None:
            near = b.near("train", several, random.Random(f"more {b.name}"))
            more += [Example(text, None, item.text) for text, item in near[first : first + _MORE]]
    return more


def _of(
    b: Behaviour,
    several: bool,
    num: int,
    decoys: int,
    twins: bool,
    sham: bool,
    draw: random.Random,
    say: random.Random,
) -> list[Example]:
    """Prompts with the trigger, the same without it, and decoys."""
    target, plain = (None, None) if sham else (b.target, b.plain)
    # what a prompt is about is harder to learn than a word in front of it: all there are
    brings = b.triggered("train", several, draw)[: None if b.semantic else num]
    found = [_example(text, target, item, say) for text, item in brings]
    found += [
        _example(text, plain, item, say) for text, item in b.near("train", several, draw)[:decoys]
    ]
    return found + [
        _example(item.text, plain, item, say)
        for item in items(b.kind, "train")[: num if twins else 0]
    ]


def _example(prompt: str, reply: Reply | None, item: Item, draw: random.Random) -> Example:
    return Example(prompt, None if reply is None else reply(item, draw), item.text)
