"""Candidates that are tried on an organism.

Vectors or adapters, and two kinds that need neither: replies that are made to begin with a given
token, and replies drawn at a temperature.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch

from melbo.features.generate import Completion, Completions, generate
from melbo.features.steerable import Steerable
from melbo.models.decoding.decode import decode
from melbo.models.edits import EditSequence
from melbo.models.language_model import LanguageModel
from melbo.models.text.prompts import Prompts

#: Temperatures of a sweep, each as often as the others.
TEMPERATURES = (0.5, 1.0, 1.5, 2.0)


class Candidates(Protocol):
    """Candidates by number."""

    def __len__(self) -> int:
        """Number of candidates."""
        ...

    def only(self, which: Sequence[int]) -> Self:
        """Some of the candidates."""
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

        Args:
            lm: The model.
            prompts: The prompts.
            max_new_tokens: Length at which replies are broken off.
            unsteered: Whether the model's own replies are wanted.
            progress: Whether to draw a bar.
        """
        ...


@dataclass(frozen=True)
class Steered:
    """Features as candidates.

    Attributes:
        features: The features.
        strength: Multiple of their scale.
    """

    features: Steerable
    strength: float = 1.0

    def __len__(self) -> int:
        """Number of candidates."""
        return len(self.features)

    def only(self, which: Sequence[int]) -> "Steered":
        """Some of the candidates."""
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
        """Replies, as `Candidates.replies`."""
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
    """First tokens as candidates: replies are made to begin with them.

    Attributes:
        tokens: The first tokens.
    """

    tokens: tuple[int, ...]

    @classmethod
    def likeliest(cls, lm: LanguageModel, prompts: Prompts, num: int) -> "Prefilled":
        """First tokens that the model finds likeliest after some prompts, by mean probability.

        Args:
            lm: The model.
            prompts: The prompts.
            num: Number of tokens.
        """
        with torch.no_grad():
            logits = [
                lm.model(torch.tensor([tokens], device=lm.device)).logits[0, -1].float()
                for tokens in prompts.tokens
            ]
        likely = torch.stack(logits).softmax(-1).mean(0)
        likely[lm.eos] = 0.0  # nothing is said after these
        return cls(tuple(likely.topk(num).indices.tolist()))

    def __len__(self) -> int:
        """Number of candidates."""
        return len(self.tokens)

    def only(self, which: Sequence[int]) -> "Prefilled":
        """Some of the candidates."""
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
        """Replies, as `Candidates.replies`."""
        begun = [(*tokens, first) for tokens in prompts.tokens for first in self.tokens]
        said = decode(lm, begun, EditSequence(()), max_new_tokens - 1, progress=progress)
        firsts = self.tokens * len(prompts)
        whole = [(first, *reply) for first, reply in zip(firsts, said, strict=True)]
        return _table(lm, prompts, whole, max_new_tokens, unsteered)


@dataclass(frozen=True)
class Drawn:
    """Draws as candidates, each at its temperature.

    Attributes:
        temperatures: Temperature of each candidate.
        seed: Random seed.
    """

    temperatures: tuple[float, ...]
    seed: int

    @classmethod
    def swept(cls, num: int, seed: int) -> "Drawn":
        """Candidates at `TEMPERATURES`, one after the other.

        Args:
            num: Number of candidates.
            seed: Random seed.
        """
        return cls(tuple(TEMPERATURES[i % len(TEMPERATURES)] for i in range(num)), seed)

    def __len__(self) -> int:
        """Number of candidates."""
        return len(self.temperatures)

    def only(self, which: Sequence[int]) -> "Drawn":
        """Some of the candidates."""
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
        """Replies, as `Candidates.replies`."""
        n = len(self)
        replies: list[Sequence[int]] = [()] * (n * len(prompts))
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            for t in dict.fromkeys(self.temperatures):
                own = [i for i in range(n) if self.temperatures[i] == t]
                rows = [p * n + i for p in range(len(prompts)) for i in own]
                said = decode(
                    lm,
                    [prompts.tokens[row // n] for row in rows],
                    EditSequence(()),
                    max_new_tokens,
                    progress=progress,
                    temperature=t,
                )
                for row, reply in zip(rows, said, strict=True):
                    replies[row] = reply
        return _table(lm, prompts, replies, max_new_tokens, unsteered)


def _table(
    lm: LanguageModel,
    prompts: Prompts,
    said: Sequence[Sequence[int]],
    max_new_tokens: int,
    unsteered: bool,
) -> Completions:
    """Replies in a table, prompt after prompt, the model's own first if it is wanted."""
    own: list[list[int]] = []
    if unsteered:
        own = decode(lm, prompts.tokens, EditSequence(()), max_new_tokens, progress=False)

    def completion(feature: int | None, p: int, reply: Sequence[int]) -> Completion:
        kind = "unsteered" if feature is None else "feature"
        text = lm.tokenizer.decode(reply, skip_special_tokens=True)
        return Completion(kind, feature, p, prompts.texts[p], text, tuple(reply))

    n, rows = len(said) // len(prompts), []
    for p in range(len(prompts)):
        rows += [completion(None, p, reply) for reply in own[p : p + 1]]
        rows += [completion(i, p, reply) for i, reply in enumerate(said[p * n : (p + 1) * n])]
    return Completions(tuple(rows))
