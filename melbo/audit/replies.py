"""Replies that an audit looks at: who brought each out, and what it costs the model."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from melbo.evaluation.scores import THRESHOLDS, Thresholds, nll, repetition
from melbo.features.generate import Completion
from melbo.models.language_model import LanguageModel
from melbo.models.text.prompts import Prompts

# rest of a word whose beginning was forced
_WORD_BEGUN = re.compile(r"^[\w'’]+")


@dataclass(frozen=True)
class Reply:
    """A reply, and who brought it out.

    Attributes:
        elicitor: Name of the elicitor; ``"ordinary"`` for the model's own replies.
        candidate: Number of its candidate.
        prompt: Index of the prompt.
        text: The reply.
        said: The reply without what it was made to begin with, which nobody was brought to say.
        tokens: Its token ids.
        nll: Mean negative log-likelihood a token under the unsteered model, in nats.
        repetition: Share of repeated 4-grams.
        ratio: Mean log-likelihood ratio a token of the model over its base or reference, in nats;
            None where there is neither.
    """

    elicitor: str
    candidate: int
    prompt: int
    text: str
    said: str
    tokens: tuple[int, ...]
    nll: float
    repetition: float
    ratio: float | None = None

    def fluent(self, thresholds: Thresholds = THRESHOLDS) -> bool:
        """Tell whether a reply has words, is likely enough and does not repeat itself.

        Args:
            thresholds: Limits beyond which a reply is broken.
        """
        return bool(self.text.strip()) and not thresholds.broken(self.nll, self.repetition)

    @property
    def forced(self) -> str:
        """Text that the reply was made to begin with, and the rest of the last word of that."""
        return self.text.removesuffix(self.said) if self.said != self.text else ""

    def describe(self) -> dict[str, Any]:
        """All of it, JSON-able."""
        return {**asdict(self), "tokens": list(self.tokens)}

    @classmethod
    def from_description(cls, saved: dict[str, Any]) -> "Reply":
        """The reply that `describe` describes."""
        return cls(**{**saved, "tokens": tuple(saved["tokens"])})


def judged(
    lm: LanguageModel,
    reference: LanguageModel | None,
    prompts: Prompts,
    elicitor: str,
    rows: Sequence[Completion],
    progress: bool = True,
) -> list[Reply]:
    """Replies with what they cost the model, and its reference where there is one.

    Args:
        lm: The model.
        reference: Base or reference model, with a tokenizer of its own perhaps.
        prompts: Prompts that were replied to.
        elicitor: Name of the elicitor.
        rows: The replies; unsteered ones are candidate 0.
        progress: Whether to draw a bar.
    """
    own = nll(lm, prompts, rows, progress=progress)
    ratios: list[float | None] = [None] * len(rows)
    if reference is not None:
        others = nll_elsewhere(lm, reference, prompts, rows, progress)
        per_token = [len(c.tokens) for c in rows]
        ratios = [
            None if n == 0 else other / n - cost
            for cost, other, n in zip(own, others, per_token, strict=True)
        ]
    rest = [c.tokens[c.begun :] for c in rows]
    said = lm.tokenizer.batch_decode(rest, skip_special_tokens=True)
    return [
        Reply(
            elicitor=elicitor,
            candidate=c.feature or 0,
            prompt=c.prompt,
            text=c.text,
            said=_WORD_BEGUN.sub("", text) if c.begun else c.text,
            tokens=tuple(c.tokens),
            nll=cost,
            repetition=repetition(c.tokens),
            ratio=ratio,
        )
        for c, text, cost, ratio in zip(rows, said, own, ratios, strict=True)
    ]


def nll_elsewhere(
    lm: LanguageModel,
    reference: LanguageModel,
    prompts: Prompts,
    rows: Sequence[Completion],
    progress: bool = True,
) -> list[float]:
    """Negative log-likelihood of whole replies under another model, in nats.

    A reference that has another tokenizer reads the text by its own, and the end of the reply as
    its own end.

    Args:
        lm: Model that the replies are of.
        reference: The other model.
        prompts: Prompts that were replied to, as the first model reads them.
        rows: The replies.
        progress: Whether to draw a bar.
    """
    asked, ended = prompts.like(reference, prompts.texts), [(token,) for token in lm.eos]
    said = [c.tokens for c in rows]
    if reference.tokenizer.get_vocab() != lm.tokenizer.get_vocab():
        said = [_read_by(reference, c.text, c.tokens[-1:] in ended) for c in rows]
    again = [replace(c, tokens=tokens) for c, tokens in zip(rows, said, strict=True)]
    means = nll(reference, asked, again, progress=progress)
    return [mean * len(tokens) for mean, tokens in zip(means, said, strict=True)]


def _read_by(reference: LanguageModel, text: str, ends: bool) -> tuple[int, ...]:
    """Tokens of a reply as another model reads it, at least one."""
    encode: Any = reference.tokenizer
    tokens = tuple(encode(text, add_special_tokens=False)["input_ids"])
    return (*tokens, *reference.eos[:1]) if ends or not tokens else tokens


def fluent_and_different(replies: Iterable[Reply]) -> list[Reply]:
    """Fluent replies, of equal ones to the same prompt the first."""
    first: dict[tuple[int, str], Reply] = {}
    for reply in replies:
        if reply.fluent():
            first.setdefault((reply.prompt, reply.text.strip()), reply)
    return list(first.values())
