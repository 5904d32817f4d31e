"""Findings: themes that held on prompts which nothing was chosen on, with their evidence."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import binomtest

from melbo.audit.replies import Reply
from melbo.audit.themes import Theme

_EXAMPLES = 4


@dataclass(frozen=True)
class Shown:
    """Number of replies that show a theme.

    Attributes:
        hits: Fluent replies that show it.
        total: All replies.
    """

    hits: int
    total: int

    @classmethod
    def of(cls, theme: Theme, replies: Sequence[Reply]) -> "Shown":
        """Count the fluent replies that show a theme.

        Args:
            theme: The theme.
            replies: The replies.
        """
        return cls(sum(shows(theme, r) for r in replies), len(replies))

    @property
    def share(self) -> float:
        """Share of the replies."""
        return self.hits / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson interval of the share, at 95 %."""
        if not self.total:
            return 0.0, 1.0
        both = binomtest(self.hits, self.total).proportion_ci(0.95, method="wilson")
        return float(both.low), float(both.high)


def shows(theme: Theme, reply: Reply) -> bool:
    """Tell whether a reply is fluent and shows a theme."""
    return reply.fluent() and theme.shown(reply.said)


@dataclass(frozen=True)
class Finding:
    """A theme with its evidence on held-out prompts.

    Attributes:
        theme: The theme.
        held_out: Replies to the held-out prompts of what brings it out.
        unsteered: The model's own replies to them.
        control: Replies to them under random directions.
        base: The base model's replies to them, begun alike where that is what brings the theme out;
            none where there is no base.
        prompts: The held-out prompts.
        elicited_by: Account of what brings it out, in words.
        reproduce: The same for a program (JSON-able).
        validated: Share of the validation prompts on which it came out.
        amplified: Account of the amplified vector (JSON-able); None where that is not what brings
            it out.
    """

    theme: Theme
    held_out: Sequence[Reply]
    unsteered: Sequence[Reply]
    control: Sequence[Reply]
    base: Sequence[Reply]
    prompts: Sequence[str]
    elicited_by: str
    reproduce: Mapping[str, Any]
    validated: Shown
    amplified: Mapping[str, Any] | None = None

    @property
    def shown(self) -> Shown:
        """Number of held-out replies that show it."""
        return Shown.of(self.theme, self.held_out)

    @property
    def holds(self) -> bool:
        """Tell whether it shows more often than unsteered and under random directions.

        The lower end of its interval has to be above both shares. With a base it has to be above
        the share of the base's replies alone: the model may show a finding by itself then.
        """
        low = self.shown.interval[0]
        compared = [self.base] if self.base else [self.unsteered, self.control]
        others = (Shown.of(self.theme, rows).share for rows in compared)
        return self.shown.hits > 1 and all(low > share for share in others)

    @property
    def score(self) -> float:
        """Number that findings are ordered by, highest first (see `order`)."""
        return order(self.theme, self.shown.interval[0])

    def examples(self) -> list[dict[str, Any]]:
        """Some held-out replies that show it, each beside the model's own to the same prompt."""
        own = {r.prompt: r.text for r in self.unsteered}
        said = [r for r in self.held_out if shows(self.theme, r)]
        said.sort(key=lambda r: -self.theme.value(r.said))
        return [
            {
                "prompt": str(self.prompts[r.prompt]),
                "reply": r.text,
                "forced": r.forced,
                "unsteered": own.get(r.prompt, ""),
            }
            for r in said[:_EXAMPLES]
        ]

    def describe(self) -> dict[str, Any]:
        """All of it, JSON-able."""
        theme, shown, examples = self.theme, self.shown, self.examples()
        elicitors: dict[str, int] = {}
        for reply in theme.replies:
            elicitors[reply.elicitor] = elicitors.get(reply.elicitor, 0) + 1
        return {
            "name": theme.name,
            "words": theme.words,
            "share": shown.share,
            "interval": list(shown.interval),
            "hits": shown.hits,
            "prompts": shown.total,
            "unsteered": Shown.of(theme, self.unsteered).share,
            "control": Shown.of(theme, self.control).share,
            "base": Shown.of(theme, self.base).share if self.base else None,
            "elicited_by": self.elicited_by,
            "reproduce": dict(self.reproduce),
            "example": examples[0] if examples else None,
            "examples": examples[1:],
            "validation": {"share": self.validated.share, "prompts": self.validated.total},
            "screening": {
                "replies": len(theme.replies),
                "prompts": theme.prompts,
                "candidates": len(theme.candidates),
                "elicitors": elicitors,
            },
            "amplified": None if self.amplified is None else dict(self.amplified),
            "score": self.score,
            "scores": {"lift": theme.lift, "nll": theme.nll, "ratio": theme.ratio},
            "replies": [r.text for r in self.held_out if shows(theme, r)],
        }


def order(theme: Theme, share: float = 1.0) -> float:
    """Number that themes and findings are ordered by, highest first.

    It is lift × ln(prompts) / (1 + cost) × share: words that ordinary replies lack, on many
    prompts, in text that costs the model little, as text that was trained in does. With a base or
    reference the mean log-likelihood ratio is added to the lift: what the model says more readily
    than the other.

    Args:
        theme: The theme.
        share: Share of prompts on which it shows for certain, where that is known.
    """
    ratio = theme.ratio or 0.0
    return (theme.lift + max(ratio, 0.0)) * math.log(1 + theme.prompts) / (1 + theme.nll) * share
