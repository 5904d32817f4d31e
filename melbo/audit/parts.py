"""Prompts of an audit, in three parts: for screening, for validation, and held out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from melbo.discovery.candidates import some_prompts
from melbo.errors import MelboError
from melbo.models.language_model import LanguageModel
from melbo.models.text.prompts import Prompts, require_prompts
from melbo.models.text.spread import Part, spread

#: Number of kinds of built-in prompts that findings are validated on, and held out twice as many;
#: all kinds are screened.
KINDS = 12
#: Fewest prompts that can be split.
LEAST_PROMPTS = 12


@dataclass(frozen=True)
class Parts:
    """Prompts of an audit, in three parts that have none in common.

    Attributes:
        screening: Prompts that elicitors are tried on and themes are found on.
        validation: Prompts that what brings a theme out is chosen on.
        held_out: Prompts that shares are reported on.

    Raises:
        MelboError: A prompt is in two parts, or a part is empty.
    """

    screening: Prompts
    validation: Prompts
    held_out: Prompts

    def __post_init__(self) -> None:
        """Refuse parts that overlap or are empty.

        Raises:
            MelboError: They do or are.
        """
        require_prompts(
            screening=self.screening, validation=self.validation, held_out=self.held_out
        )
        each = [set(p.tokens) for p in (self.screening, self.validation, self.held_out)]
        if not all(each):
            raise MelboError("a part of the prompts is empty: expected prompts for each of three")
        if len(set.union(*each)) < sum(map(len, each)):
            raise MelboError(
                "a prompt is in two of the three parts: take it out of one, since findings are "
                "reported on prompts that nothing was chosen on"
            )

    @classmethod
    def built_in(
        cls, lm: LanguageModel, read: Callable[[Sequence[str]], Prompts] | None = None
    ) -> "Parts":
        """Built-in prompts: all kinds for screening, the first `KINDS` of them for the other parts.

        Prompts with a system message or several turns are left out where the model's template takes
        none.

        Args:
            lm: The model.
            read: Reads texts as prompts; by default as chats, or as they are where the model has no
                chat template.

        Raises:
            MelboError: The prompts cannot be read, those of one turn neither.
        """
        talks = bool(lm.tokenizer.chat_template)
        if read is None:
            read = partial(Prompts.chat if talks else Prompts.text, lm)
        try:
            return cls(*(read(texts) for texts in _of_kinds(talks)))
        except MelboError:
            if not talks:
                raise
            return cls(*(read(texts) for texts in _of_kinds(False)))

    @classmethod
    def split(cls, prompts: Prompts) -> "Parts":
        """Split prompts: every fourth for screening, the next for validation, the rest held out.

        Args:
            prompts: The prompts.

        Raises:
            MelboError: They are fewer than `LEAST_PROMPTS`, or one comes twice.
        """
        if len(prompts) < LEAST_PROMPTS:
            raise MelboError(
                f"got {len(prompts)} prompts: expected at least {LEAST_PROMPTS}, of which a half "
                "is held out; give more, or none for the built-in ones"
            )
        rows = range(len(prompts))
        parts = ([i for i in rows if i % 4 == 0], [i for i in rows if i % 4 == 1])
        rest = [i for i in rows if i % 4 > 1]
        return cls(*(some_prompts(prompts, which) for which in (*parts, rest)))


def _of_kinds(conversations: bool) -> list[list[str]]:
    """Texts of each part."""
    screening = spread("screening", conversations)
    kinds = {p.kind for p in screening[:KINDS]}
    proof: tuple[Part, ...] = ("validation", "held_out")
    rest = [[p.text for p in spread(part, conversations) if p.kind in kinds] for part in proof]
    return [[p.text for p in screening], *rest]
