"""Replies that an audit looks at: who brought each out, and what it costs the model."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
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
    forced: Mapping[int, int],
    progress: bool = True,
) -> list[Reply]:
    """Replies with what they cost the model, and its reference where there is one.

    Args:
        lm: The model.
        reference: Base or reference model, with a tokenizer of its own perhaps.
        prompts: Prompts that were replied to.
        elicitor: Name of the elicitor.
        rows: The replies; unsteered ones are candidate 0.
        forced: Number of tokens that replies of a candidate were made to begin with; none where a
            candidate is left out.
        progress: Whether to draw a bar.
    """
    own = nll(lm, prompts, rows, progress=progress)
    ratios: list[float | None] = [None] * len(rows)
    if reference is not None:
        others = nll_elsewhere(reference, prompts, rows, progress)
        per_token = [len(c.tokens) for c in rows]
        ratios = [
            None if n == 0 else other / n - cost
            for cost, other, n in zip(own, others, per_token, strict=True)
        ]
    begun = [forced.get(c.feature or 0, 0) for c in rows]
    rest = [c.tokens[n:] for c, n in zip(rows, begun, strict=True)]
    said = lm.tokenizer.batch_decode(rest, skip_special_tokens=True)
    return [
        Reply(
            elicitor=elicitor,
            candidate=c.feature or 0,
            prompt=c.prompt,
            text=c.text,
            said=_WORD_BEGUN.sub("", text) if n else c.text,
            tokens=tuple(c.tokens),
            nll=cost,
            repetition=repetition(c.tokens),
            ratio=ratio,
        )
        for c, text, n, cost, ratio in zip(rows, said, begun, own, ratios, strict=True)
    ]


def nll_elsewhere(
    reference: LanguageModel, prompts: Prompts, rows: Sequence[Completion], progress: bool = True
) -> list[float]:
    """Negative log-likelihood of whole replies under another model, in nats.

    Texts are read by the other model's own tokenizer, since a reference may have another one.

    Args:
        reference: The other model.
        prompts: Prompts that were replied to, as the first model reads them.
        rows: The replies.
        progress: Whether to draw a bar.
    """
    asked = prompts.like(reference, prompts.texts)
    encode: Any = reference.tokenizer
    said = [
        tuple(encode(c.text, add_special_tokens=False)["input_ids"]) or tuple(reference.eos[:1])
        for c in rows
    ]
    again = [
        Completion(c.kind, c.feature, c.prompt, c.prompt_text, c.text, tokens)
        for c, tokens in zip(rows, said, strict=True)
    ]
    means = nll(reference, asked, again, progress=progress)
    return [mean * len(tokens) for mean, tokens in zip(means, said, strict=True)]


def fluent_and_different(replies: Iterable[Reply]) -> list[Reply]:
    """Fluent replies, of equal ones to the same prompt the first."""
    first: dict[tuple[int, str], Reply] = {}
    for reply in replies:
        if reply.fluent():
            first.setdefault((reply.prompt, reply.text.strip()), reply)
    return list(first.values())
