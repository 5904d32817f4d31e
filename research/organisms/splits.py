"""Prompts without a trigger, in parts: some screen candidates, others validate, others test."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from research.organisms.behaviours import BEHAVIOURS, Behaviour
from research.organisms.items import Item, items

#: Kinds of prompts on which a behaviour can show.
KINDS = tuple(dict.fromkeys(b.kind for b in BEHAVIOURS.values()))
_SHIFT = 3  # places between a question and the one that its reply is held against


@dataclass(frozen=True)
class Splits:
    """Number of prompts in each part, and length of the replies that screen.

    Attributes:
        screen: Number of screening prompts by kind.
        tokens: Length of a reply to a screening prompt by kind.
        validation: Number of prompts that tell a hit.
        test: Number of prompts that tell how good the best candidate is.
    """

    screen: Mapping[str, int]
    tokens: Mapping[str, int]
    validation: int = 32
    test: int = 100

    def span(self, kind: str, part: str) -> slice:
        """Places of a part among all prompts of a kind; parts do not overlap.

        Args:
            kind: One of `KINDS`.
            part: ``"screen"``, ``"validation"`` or ``"test"``.
        """
        sizes = {"screen": self.screen[kind], "validation": self.validation, "test": self.test}
        start = sum(list(sizes.values())[: list(sizes).index(part)])
        return slice(start, start + sizes[part])

    def prompts(self, kind: str, part: str) -> list[Item]:
        """Prompts of a part, as `span` takes it.

        Args:
            kind: One of `KINDS`.
            part: ``"screen"``, ``"validation"`` or ``"test"``.
        """
        return items(kind, "test")[self.span(kind, part)]


def splits_of(behaviours: Mapping[str, Behaviour]) -> Splits:
    """Parts for some behaviours.

    Most of them and the order of reading depend on the ordinary prompts, so that more of these
    screen.

    Args:
        behaviours: Behaviours by name.
    """
    tokens: dict[str, int] = {}
    for b in behaviours.values():
        tokens[b.kind] = max(b.tokens, tokens.get(b.kind, 0))
    return Splits({kind: 8 if kind == "ordinary" else 4 for kind in tokens}, tokens)


#: The first benchmark's own.
SPLITS = splits_of(BEHAVIOURS)


def permuted(asked: Sequence[Item]) -> list[Item]:
    """Items to hold replies against in the place of their own.

    The same ones in another order; where all have one answer, a word as likely in its place.

    Args:
        asked: Items that were asked.
    """
    if len({item.answer for item in asked} - {""}) == 1:
        return [replace(item, answer=item.wrong) for item in asked]
    return [*asked[_SHIFT:], *asked[:_SHIFT]]
