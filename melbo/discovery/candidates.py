"""Candidates: whatever may bring out something hidden, and the elicitors that provide them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, Self, TypeVar

from melbo.features.generate import Completion, Completions
from melbo.models.decoding.decode import decode
from melbo.models.edits import Edit, EditSequence
from melbo.models.language_model import LanguageModel
from melbo.models.text.prompts import Prompts

Replies = Sequence[Sequence[int]]
T = TypeVar("T")


class Candidates(Protocol):
    """Candidates by number."""

    def __len__(self) -> int:
        """Number of candidates."""
        ...

    def only(self, which: Sequence[int]) -> Self:
        """Some of the candidates.

        Args:
            which: Their numbers.
        """
        ...

    def replies(
        self,
        lm: LanguageModel,
        prompts: Prompts,
        max_new_tokens: int,
        *,
        unsteered: bool,
        progress: bool,
    ) -> Completions:
        """Replies to every prompt: the model's own if it is wanted, then each candidate's.

        A candidate's replies depend neither on the candidates beside it nor on the order of the
        prompts.

        Args:
            lm: The model.
            prompts: The prompts.
            max_new_tokens: Length at which replies are broken off.
            unsteered: Whether the model's own replies are wanted.
            progress: Whether to draw a bar.
        """
        ...

    def describe(self, i: int) -> dict[str, Any]:
        """Account of candidate ``i``, JSON-able: its ``kind``, and what reproduces it."""
        ...


class Elicitor(Protocol):
    """A way to provide candidates.

    Attributes:
        name: Its name: ``"openings"``, ``"directions"``, …
        description: The same in words, for tables.
    """

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def description(self) -> str:
        """The same in words, for tables."""
        ...

    def candidates(
        self, lm: LanguageModel, prompts: Prompts, num: int, seed: int, progress: bool
    ) -> tuple[Candidates, float]:
        """Find candidates.

        Args:
            lm: The model.
            prompts: Prompts that it may learn from.
            num: Number of candidates; where there are not so many, it gives those there are.
            seed: Random seed.
            progress: Whether to draw bars.

        Returns:
            The candidates, and the number of tokens that the whole model would have read for the
            work of finding them.
        """
        ...


class Edited(ABC):
    """Candidates whose replies are decoded, each row under an edit of its own."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of candidates."""

    @abstractmethod
    def edit(self, prompts: Prompts) -> Edit:
        """Edit of the rows, prompt after prompt and in each candidate after candidate."""

    def alike(self, i: int) -> int:
        """Number that candidates share which leave the same stream behind on a common prefix."""
        return i

    def begun(self, i: int) -> int:
        """Number of tokens that replies of candidate ``i`` are made to begin with."""
        return 0

    def replies(
        self,
        lm: LanguageModel,
        prompts: Prompts,
        max_new_tokens: int,
        *,
        unsteered: bool,
        progress: bool,
    ) -> Completions:
        """See `Candidates.replies`."""
        n = len(self)
        said = decode(
            lm,
            [tokens for tokens in prompts.tokens for _ in range(n)],
            self.edit(prompts),
            max_new_tokens,
            progress=progress,
            alike=[self.alike(i) for i in range(n)] * len(prompts),
        )
        begun = [self.begun(i) for i in range(n)] * len(prompts)
        return as_table(lm, prompts, said, max_new_tokens, unsteered, begun)


def as_table(
    lm: LanguageModel,
    prompts: Prompts,
    said: Replies,
    max_new_tokens: int,
    unsteered: bool,
    begun: Sequence[int] = (),
) -> Completions:
    """Replies as a table, the model's own before those of the candidates if they are wanted.

    Args:
        lm: The model.
        prompts: The prompts.
        said: Tokens of the replies, prompt after prompt and in each candidate after candidate.
        max_new_tokens: Length at which the model's own replies are broken off.
        unsteered: Whether these are wanted.
        begun: Number of tokens that each reply was made to begin with; 0 if left out.
    """
    own: Replies = ()
    if unsteered:
        own = decode(lm, prompts.tokens, EditSequence(()), max_new_tokens, progress=False)
    n = len(said) // len(prompts)
    forced = begun or [0] * len(said)
    rows: list[tuple[str, int | None, int, Sequence[int], int]] = []
    for p in range(len(prompts)):
        rows += [("unsteered", None, p, reply, 0) for reply in own[p : p + 1]]
        part = slice(p * n, (p + 1) * n)
        each = zip(said[part], forced[part], strict=True)
        rows += [("feature", i, p, reply, num) for i, (reply, num) in enumerate(each)]
    texts = lm.tokenizer.batch_decode([reply for *_, reply, _ in rows], skip_special_tokens=True)
    return Completions(
        tuple(
            Completion(kind, i, p, prompts.texts[p], text, tuple(reply), begun=num)
            for (kind, i, p, reply, num), text in zip(rows, texts, strict=True)
        )
    )


def in_shares(num: int, parts: int, unit: int = 1) -> list[int]:
    """Split a number into parts as equal as may be, the larger ones first.

    Args:
        num: The number, a multiple of ``unit``.
        parts: Number of parts.
        unit: Each part is a multiple of it.
    """
    whole, more = divmod(num // unit, parts)
    return [unit * (whole + (i < more)) for i in range(parts)]


def some_prompts(prompts: Prompts, which: Sequence[int]) -> Prompts:
    """Some of the prompts, in this order.

    Args:
        prompts: The prompts.
        which: Their numbers.
    """
    return replace(prompts, texts=pick(prompts.texts, which), tokens=pick(prompts.tokens, which))


def pick(values: Sequence[T], which: Sequence[int]) -> tuple[T, ...]:
    """Some of the values, in this order."""
    return tuple(values[i] for i in which)
