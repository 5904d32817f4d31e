"""Proof: what brings a theme out on other prompts, chosen on some and counted on the rest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from melbo.audit.budget import Costs
from melbo.audit.findings import Finding, Shown
from melbo.audit.learnt import AMPLIFIED, LearntVectors, alone
from melbo.audit.parts import Parts
from melbo.audit.quotes import quotes
from melbo.audit.replies import Reply
from melbo.audit.screen import Screening, Source, described
from melbo.audit.themes import Theme
from melbo.discovery.continuations import Continued
from melbo.discovery.openings import Forced
from melbo.discovery.steered import Features, Steered
from melbo.models.language_model import LanguageModel
from melbo.models.text.prompts import Prompts

#: Themes that are proved at most, and candidates of each that are tried on validation prompts.
MOST_THEMES, TRIED = 24, 2
#: Share of validation prompts below which a theme is amplified, where it has replies enough.
AMPLIFIED_BELOW, LEAST_REPLIES = 0.8, 8
#: Quotes of a theme that are tried on validation prompts.
QUOTED = 3
#: Random directions beside every finding.
CONTROLS = 4
_QUOTE = "quote"
# kinds of candidates that any model with the same tokenizer can be put under
_OF_ANY_MODEL = ("opening", "continuation", "draw")

#: Elicitor and number of a candidate.
Who = tuple[str, int]
#: The best candidate of each theme, and how often it brings it out on validation prompts.
Best = tuple[list[Who], list[Shown]]


class ProofCosts(NamedTuple):
    """Tokens that proving themes takes at most.

    Attributes:
        controls: Held-out replies of the model by itself and under random directions.
        validated: Replies of all that is tried for a theme to the validation prompts.
        reported: Held-out replies under what brings a theme out.
    """

    controls: int
    validated: int
    reported: int

    @classmethod
    def of(cls, parts: Parts, length: int, speakers: int) -> "ProofCosts":
        """Costs of the proof on these prompts.

        Args:
            parts: Prompts of the audit.
            length: Length of a reply at most.
            speakers: Number of models that reply to the held-out prompts.
        """
        held_out = Costs.of(parts.held_out, length, 1).everywhere
        validation = Costs.of(parts.validation, length, 1).everywhere
        return cls((1 + CONTROLS) * held_out, (TRIED + QUOTED) * validation, speakers * held_out)

    @property
    def a_theme(self) -> int:
        """Tokens of a theme, without the controls."""
        return self.validated + self.reported


@dataclass
class Proof:
    """Proof of themes on prompts that they were not found on.

    Attributes:
        screening: Replies to prompts, and the log; no reference reads them.
        sources: Elicitors by name.
        said: Replies that they brought out to the screening prompts.
        parts: Prompts that themes were found on, that candidates are chosen on, and that are
            reported.
        tokens: Tokens to spend.
        folder: Folder for amplified vectors.
        seed: Random seed.
        base: Base model, or None.
    """

    screening: Screening
    sources: Mapping[str, Source]
    said: Sequence[Reply]
    parts: Parts
    tokens: float
    folder: Path
    seed: int
    base: LanguageModel | None
    _quotes: Source = field(init=False, repr=False)

    def findings(self, themes: Sequence[Theme]) -> list[Finding]:
        """Prove as many themes as the tokens pay for.

        Args:
            themes: The themes, the most promising first.

        Returns:
            A finding for each of them, in the same order.
        """
        proved = themes[: self._affordable]
        best = self.quoted(proved, self.chosen(proved))
        return self.reported(proved, self.amplified(proved, best, self._left(len(proved))))

    def reported(self, themes: Sequence[Theme], best: Best) -> list[Finding]:
        """Count themes on the held-out prompts, beside the controls.

        Args:
            themes: The themes.
            best: What brings each of them out.
        """
        whos, shares = best
        screening, prompts = self.screening, self.parts.held_out
        held_out = self._replies("test", whos, prompts)
        unsteered = screening.ordinary("test", prompts, 0, self.seed, screening.lm)
        base = self._of_base(whos)
        control = list(screening.candidates("test", self._control, range(CONTROLS), prompts))
        return [
            Finding(
                theme=theme,
                held_out=held_out[who],
                unsteered=unsteered,
                control=control,
                base=base.get(who, []),
                prompts=prompts.texts,
                elicited_by=self._in_words(who),
                reproduce=self._account(who),
                validated=validated,
                amplified=self._vectors.describe(who[1]) if who[0] == AMPLIFIED else None,
            )
            for theme, who, validated in zip(themes, whos, shares, strict=True)
        ]

    def _of_base(self, whos: Sequence[Who]) -> dict[Who, list[Reply]]:
        """The base's replies to the held-out prompts, begun alike where a beginning is forced.

        Directions and noise belong to the model that they were made for; the base speaks by itself
        beside them.
        """
        if self.base is None:
            return {}
        described = {(name, i): self._source(name).candidates.describe(i) for name, i in whos}
        alike = [who for who, about in described.items() if about["kind"] in _OF_ANY_MODEL]
        replies = self._replies("base test", alike, self.parts.held_out, self.base)
        if len(replies) < len(set(whos)):
            prompts = self.parts.held_out
            itself = self.screening.ordinary("base test", prompts, 0, self.seed, self.base)
            replies |= {who: itself for who in whos if who not in replies}
        return replies

    def chosen(self, themes: Sequence[Theme]) -> Best:
        """The candidates that bring themes out best, out of those that said them most.

        Args:
            themes: The themes.
        """
        tried = [_to_try(theme) for theme in themes]
        every = [who for each in tried for who in each]
        said = self._replies("validate", every, self.parts.validation)
        best = [
            max(each, key=lambda who: Shown.of(theme, said[who]).share)
            for theme, each in zip(themes, tried, strict=True)
        ]
        return best, [Shown.of(t, said[who]) for t, who in zip(themes, best, strict=True)]

    def quoted(self, themes: Sequence[Theme], best: Best) -> Best:
        """A quote of a weak theme in the place of what brings it out, if it does so more often.

        Args:
            themes: The themes.
            best: What brings each of them out so far.
        """
        weak = [k for k, shown in enumerate(best[1]) if shown.share < AMPLIFIED_BELOW]
        tokenizer = self.screening.lm.tokenizer
        each = [
            (k, quote) for k in weak for quote in quotes(themes[k], self.said, tokenizer, QUOTED)
        ]
        if not each:
            return best
        found = Continued(Forced(tuple(quote for _, quote in each)))
        self._quotes = Source(_QUOTE, lambda: (found, 0.0))
        return self._better(themes, best, [(k, (_QUOTE, i)) for i, (k, _) in enumerate(each)])

    def _better(
        self, themes: Sequence[Theme], best: Best, tried: Sequence[tuple[int, Who]]
    ) -> Best:
        """The best candidate of each theme, one of those tried where that does so more often.

        Args:
            themes: The themes.
            best: What brings each of them out so far.
            tried: Numbers of themes, and a candidate for each.
        """
        whos, shown = list(best[0]), list(best[1])
        said = self._replies("validate", [who for _, who in tried], self.parts.validation)
        for k, who in tried:
            now = Shown.of(themes[k], said[who])
            if now.share > shown[k].share:
                whos[k], shown[k] = who, now
        return whos, shown

    @cached_property
    def _costs(self) -> ProofCosts:
        speakers = 1 + (self.base is not None)
        return ProofCosts.of(self.parts, self.screening.max_new_tokens, speakers)

    @property
    def _affordable(self) -> int:
        """Number of themes that the tokens pay for."""
        num = int((self.tokens - self._costs.controls) / self._costs.a_theme)
        return max(1, min(MOST_THEMES, num))

    def _left(self, proved: int) -> float:
        """Tokens that are left to amplify some of the themes, before they are reported.

        Args:
            proved: Number of themes.
        """
        tried = self.screening.log.of({"stage": "validate"})
        spent = sum(row["tokens"] for row in tried if row["elicitor"] != AMPLIFIED)
        return float(self.tokens - spent - self._costs.controls - proved * self._costs.reported)

    def _replies(
        self,
        stage: str,
        whos: Sequence[Who],
        prompts: Prompts,
        speaker: LanguageModel | None = None,
    ) -> dict[Who, list[Reply]]:
        """Replies to some prompts of each candidate, those of one elicitor together."""
        of: dict[str, set[int]] = {}
        for name, i in whos:
            of.setdefault(name, set()).add(i)
        replies: dict[Who, list[Reply]] = {}
        for name, which in of.items():
            for reply in self.screening.candidates(
                stage, self._source(name), sorted(which), prompts, speaker
            ):
                replies.setdefault((name, reply.candidate), []).append(reply)
        return replies

    def _source(self, name: str) -> Source:
        if name == AMPLIFIED:
            return self._vectors.source
        return self._quotes if name == _QUOTE else self.sources[name]

    def amplified(self, themes: Sequence[Theme], best: Best, tokens: float) -> Best:
        """A vector that is learnt from a weak theme's replies, if it brings it out more often.

        Args:
            themes: The themes.
            best: What brings each of them out so far.
            tokens: Tokens to spend on learning.
        """
        shares = best[1]
        weak = [
            k
            for k, theme in enumerate(themes)
            if shares[k].share < AMPLIFIED_BELOW and len(theme.replies) >= LEAST_REPLIES
        ]
        for k in weak:
            cost = self._vectors.learn(k, themes[k], tokens, shares[k].share)
            if cost is None:
                break
            tokens -= cost
        tried = [(k, (AMPLIFIED, i)) for i, k in enumerate(self._vectors.themes)]
        return self._better(themes, best, tried)

    @cached_property
    def _vectors(self) -> LearntVectors:
        return LearntVectors(
            self.screening,
            self.parts.screening,
            self.sources.get("directions"),
            self._control,
            self.folder,
            self.seed,
        )

    @cached_property
    def _control(self) -> Source:
        """Random directions, in the place of learnt ones."""
        lm, find = self.screening.lm, Features("random").candidates
        return Source("control", lambda: find(lm, self.parts.screening, CONTROLS, self.seed, False))

    def _in_words(self, who: Who) -> str:
        name, _ = who
        return "amplified vector" if name == AMPLIFIED else described(self._account(who))

    def _account(self, who: Who) -> dict[str, Any]:
        name, i = who
        if name == AMPLIFIED:
            return {"kind": AMPLIFIED, "folder": self._vectors.describe(i)["folder"]}
        about = self._source(name).candidates.describe(i)
        return about | {"folder": self._saved(i)} if about["kind"] == "direction" else about

    def _saved(self, i: int) -> str:
        """Folder of the run that holds direction ``i`` alone, at the strength it was tried at."""
        steered = self.sources["directions"].candidates
        assert isinstance(steered, Steered)
        one = alone(steered, i)
        at_strength = replace(one, scale=one.scale * steered.strengths[i])
        # it may have brought out several themes, or have been written by an interrupted audit
        at_strength.save(self.folder / "directions" / str(i), force=True)
        return f"directions/{i}"


def _to_try(theme: Theme) -> list[Who]:
    """Candidates of a theme to try: the best of each elicitor, then the next best of all."""
    first: dict[str, Who] = {}
    for who in theme.candidates:
        first.setdefault(who[0], who)
    best = list(first.values())
    return [*best, *(who for who in theme.candidates if who not in best)][:TRIED]
