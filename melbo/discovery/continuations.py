"""Continuations: the model's own replies, made to go on in another way after a sentence.

A habit in mid-reply, or at its end, has no opening of its own: it begins where the model has said a
sentence. Tokens are forced there as openings are at the start.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from melbo.discovery.candidates import as_table, some_prompts
from melbo.discovery.openings import Forced, Openings
from melbo.features.generate import Completions
from melbo.models.decoding.decode import decode
from melbo.models.edits import EditSequence
from melbo.models.language_model import LanguageModel
from melbo.models.text.prompts import Prompts

#: Tokens of a reply's beginning at most: a reply without an end of a sentence there is cut.
BEGINNING = 20
#: Share of the continuations that are grown.
GROWN = 0.25
_LEAST = 4  # tokens of a sentence at least: the point of "1." ends none
_ENDS = (".", "!", "?", ":", "\n", "。", "！", "？", "؟", "।")


@dataclass(frozen=True)
class Continued:
    """Continuations as candidates: each goes on from the first sentence of every reply.

    Attributes:
        forced: Tokens that come after the first sentence.
    """

    forced: Forced

    def __len__(self) -> int:
        """Number of candidates."""
        return len(self.forced)

    def only(self, which: Sequence[int]) -> "Continued":
        """Some of the candidates."""
        return Continued(self.forced.only(which))

    def replies(
        self,
        lm: LanguageModel,
        prompts: Prompts,
        max_new_tokens: int,
        *,
        unsteered: bool,
        progress: bool,
    ) -> Completions:
        """See `Candidates.replies`; half of a reply at most is its beginning."""
        begun = beginnings(lm, prompts, min(BEGINNING, max_new_tokens // 2))
        n, left = len(self), max_new_tokens - max(map(len, begun))
        longer = _longer(prompts, begun)
        said = decode(
            lm,
            [tokens for tokens in longer.tokens for _ in range(n)],
            self.forced.edit(longer),
            left,
            progress=progress,
            alike=[0] * n * len(prompts),
        )
        before = [tokens for tokens in begun for _ in range(n)]
        whole = [[*start, *rest] for start, rest in zip(before, said, strict=True)]
        lengths = [self.forced.begun(i) for i in range(n)] * len(prompts)
        forced = [len(start) + num for start, num in zip(before, lengths, strict=True)]
        return as_table(lm, prompts, whole, max_new_tokens, unsteered, forced)

    def describe(self, i: int) -> dict[str, Any]:
        """See `Candidates.describe`."""
        return {**self.forced.describe(i), "kind": "continuation"}


@dataclass(frozen=True)
class Continuations:
    """Elicitor: tokens forced after the first sentence of the model's own reply.

    They are found as openings are (see `melbo.discovery.openings.Openings`), with each prompt
    followed by the first sentence of the model's greedy reply.

    Attributes:
        tokens: Settings of the search for tokens.
    """

    tokens: Openings = field(default_factory=lambda: Openings(grown=GROWN))
    name: str = field(default="continuations", init=False)
    description: str = field(
        default="the model's own replies, forced to go on otherwise after a sentence", init=False
    )

    def candidates(
        self, lm: LanguageModel, prompts: Prompts, num: int, seed: int, progress: bool
    ) -> tuple[Continued, float]:
        """See `Elicitor.candidates`."""
        order = random.Random(seed).sample(range(len(prompts)), len(prompts))
        some = some_prompts(prompts, order[: self.tokens.num_prompts])
        begun = beginnings(lm, some, BEGINNING)
        forced, read = self.tokens.candidates(lm, _longer(some, begun), num, seed, progress)
        return Continued(forced), read + len(some) * BEGINNING + sum(map(len, some.tokens))


def beginnings(lm: LanguageModel, prompts: Prompts, length: int) -> list[tuple[int, ...]]:
    """Tokens of the first sentence of the model's greedy reply to each prompt.

    A reply whose first sentence does not end within ``length`` tokens is cut there, or where it
    ends.

    Args:
        lm: The model.
        prompts: The prompts.
        length: Number of tokens at most.
    """
    replies = decode(lm, prompts.tokens, EditSequence(()), length, progress=False)
    return [_first_sentence(lm, reply) for reply in replies]


def _first_sentence(lm: LanguageModel, reply: Sequence[int]) -> tuple[int, ...]:
    """Tokens of a reply up to the end of its first sentence, or without its end-of-reply token."""
    said = [token for token in reply if token not in lm.eos]
    texts = lm.tokenizer.batch_decode([[token] for token in said])
    for i in range(_LEAST, len(said)):
        # another word follows: the point of "3.5" ends no sentence
        if texts[i - 1].rstrip(" ").endswith(_ENDS) and (
            texts[i][:1].isspace() or texts[i - 1].endswith("\n")
        ):
            return tuple(said[:i])
    return tuple(said)


def _longer(prompts: Prompts, begun: Sequence[Sequence[int]]) -> Prompts:
    """Prompts, each followed by the beginning of a reply."""
    both = zip(prompts.tokens, begun, strict=True)
    return replace(prompts, tokens=tuple((*prompt, *start) for prompt, start in both))
