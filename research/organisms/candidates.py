"""What is tried on an organism: vectors or adapters, and what needs neither: replies that begin otherwise, or are drawn at a temperature."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch

from melbo.features.generate import Completion, Completions, generate
from melbo.features.steerable import Steerable
from melbo.models.decode import decode
from melbo.models.edits import EditSequence
from melbo.models.language_model import LanguageModel
from melbo.models.prompts import Prompts

#: Temperatures that are swept, equally often.
TEMPERATURES = (0.5, 1.0, 1.5, 2.0)


class Candidates(Protocol):
    """Things to try, by number."""

    def __len__(self) -> int:
        """How many."""
        ...

    def only(self, which: Sequence[int]) -> Self:
        """Some of them."""
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
        """A table: to every prompt the model's own reply if that is wanted, then that of each candidate."""
        ...


@dataclass(frozen=True)
class Steered:
    """Features.

    Attributes:
        bank: The features.
        strength: Multiple of their scale.
    """

    features: Steerable
    strength: float = 1.0

    def __len__(self) -> int:
        """How many."""
        return len(self.features)

    def only(self, which: Sequence[int]) -> "Steered":
        """Some of them."""
        return replace(self, features=self.features[list(which)])

    def replies(
        self,
        lm: LanguageModel,
        prompts: Prompts,
        max_new_tokens: int,
        *,
        unsteered: bool,
        progress: bool,
    ) -> Completions:
        """See `Candidates`."""
        return generate(
            lm,
            prompts,
            self.features,
            max_new_tokens=max_new_tokens,
            strength=self.strength,
            unsteered=unsteered,
            progress=progress,
        )


@dataclass(frozen=True)
class Prefilled:
    """First tokens that replies are made to begin with.

    Attributes:
        tokens: The tokens.
    """

    tokens: tuple[int, ...]

    @classmethod
    def likeliest(cls, lm: LanguageModel, prompts: Prompts, num: int) -> "Prefilled":
        """Those that the model finds likeliest after these prompts, by mean probability."""
        with torch.no_grad():
            logits = [
                lm.model(torch.tensor([tokens], device=lm.device)).logits[0, -1].float()
                for tokens in prompts.tokens
            ]
        likely = torch.stack(logits).softmax(-1).mean(0)
        likely[lm.eos] = 0.0  # after which there is nothing to say
        return cls(tuple(likely.topk(num).indices.tolist()))

    def __len__(self) -> int:
        """How many."""
        return len(self.tokens)

    def only(self, which: Sequence[int]) -> "Prefilled":
        """Some of them."""
        return Prefilled(tuple(self.tokens[i] for i in which))

    def replies(
        self,
        lm: LanguageModel,
        prompts: Prompts,
        max_new_tokens: int,
        *,
        unsteered: bool,
        progress: bool,
    ) -> Completions:
        """See `Candidates`."""
        begun = [(*tokens, first) for tokens in prompts.tokens for first in self.tokens]
        said = decode(lm, begun, EditSequence(()), max_new_tokens - 1, progress=progress)
        return _table(
            lm,
            prompts,
            [
                (first, *reply)
                for first, reply in zip(self.tokens * len(prompts), said, strict=True)
            ],
            max_new_tokens,
            unsteered,
        )


@dataclass(frozen=True)
class Drawn:
    """Replies that are drawn, each candidate at its temperature.

    Attributes:
        temperatures: Of each candidate.
        seed: Of what is drawn.
    """

    temperatures: tuple[float, ...]
    seed: int

    @classmethod
    def swept(cls, num: int, seed: int) -> "Drawn":
        """`TEMPERATURES`, one after the other."""
        return cls(tuple(TEMPERATURES[i % len(TEMPERATURES)] for i in range(num)), seed)

    def __len__(self) -> int:
        """How many."""
        return len(self.temperatures)

    def only(self, which: Sequence[int]) -> "Drawn":
        """Some of them."""
        return replace(self, temperatures=tuple(self.temperatures[i] for i in which))

    def replies(
        self,
        lm: LanguageModel,
        prompts: Prompts,
        max_new_tokens: int,
        *,
        unsteered: bool,
        progress: bool,
    ) -> Completions:
        """See `Candidates`."""
        n = len(self)
        found: list[Sequence[int]] = [()] * (n * len(prompts))
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            for t in dict.fromkeys(self.temperatures):
                rows = [
                    p * n + i
                    for p in range(len(prompts))
                    for i in range(n)
                    if self.temperatures[i] == t
                ]
                said = decode(
                    lm,
                    [prompts.tokens[row // n] for row in rows],
                    EditSequence(()),
                    max_new_tokens,
                    progress=progress,
                    temperature=t,
                )
                for row, reply in zip(rows, said, strict=True):
                    found[row] = reply
        return _table(lm, prompts, found, max_new_tokens, unsteered)


def _table(
    lm: LanguageModel,
    prompts: Prompts,
    said: Sequence[Sequence[int]],
    max_new_tokens: int,
    unsteered: bool,
) -> Completions:
    """Replies, prompt after prompt, each prompt's with the model's own in front if that is wanted."""
    own = (
        decode(lm, prompts.tokens, EditSequence(()), max_new_tokens, progress=False)
        if unsteered
        else []
    )
    n, rows = len(said) // len(prompts), []
    for p in range(len(prompts)):
        for i, reply in [
            *((None, plain) for plain in own[p : p + 1]),
            *enumerate(said[p * n : (p + 1) * n]),
        ]:
            text = lm.tokenizer.decode(reply, skip_special_tokens=True)
            rows.append(
                Completion(
                    "unsteered" if i is None else "feature",
                    i,
                    p,
                    prompts.texts[p],
                    text,
                    tuple(reply),
                )
            )
    return Completions(tuple(rows))
