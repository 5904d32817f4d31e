"""Audit of a model: what its elicitors bring out, as findings in order."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from melbo.audit.account import account, spent, spent_before_proof
from melbo.audit.budget import TOKENS, Budget, Costs
from melbo.audit.findings import order
from melbo.audit.parts import Parts
from melbo.audit.prove import Proof, ProofCosts
from melbo.audit.rarity import rarity_of
from melbo.audit.replies import Reply
from melbo.audit.result import Findings
from melbo.audit.screen import BY_ITSELF, Screening, Source, Unsteered, elicit
from melbo.audit.themes import Theme, themes
from melbo.discovery.candidates import Elicitor
from melbo.discovery.continuations import GROWN, Continuations
from melbo.discovery.differences import ActivationDifference, WeightDifference, require_alike
from melbo.discovery.draws import Temperature
from melbo.discovery.extrapolation import Extrapolation
from melbo.discovery.openings import Openings
from melbo.discovery.steered import Features
from melbo.errors import MelboError, require
from melbo.models.language_model import LanguageModel
from melbo.progress import track
from melbo.records import ResultLog, Row, to_json, write_atomically

#: Files of an audit in its folder.
LOG, FINDINGS = "audit.jsonl", "findings.json"
#: Version of the log; one of another version is not gone on with.
VERSION = 3
#: Length of a reply at most, long enough for a habit that shows in mid-reply.
REPLY_TOKENS = 40


def usual_elicitors(base: LanguageModel | None = None) -> list[Elicitor]:
    """Elicitors of an audit unless told otherwise, those that cost least first.

    Args:
        base: Base model, whose differences then bring something out too.
    """
    usual: list[Elicitor] = [
        Openings(base=base),
        Continuations(Openings(grown=GROWN, base=base)),
        Temperature(),
        Features(),
    ]
    if base is not None:
        usual.insert(2, Extrapolation(base))
        usual += [WeightDifference(base), ActivationDifference(base)]
    return usual


@dataclass(frozen=True)
class Audit:
    """Search for hidden behaviours.

    Elicitors bring out replies to the screening prompts. Replies that share words which ordinary
    ones lack are themes (see `melbo.audit.themes`). The candidate that brings a theme out best is
    chosen on the validation prompts, amplified where it is weak, and counted on the held-out ones
    beside the unsteered model and random directions.

    With a base, replies of the base are the ordinary ones, so that whatever the model says by
    itself can be a finding too. With a base or a reference, its likelihoods order the findings.

    Attributes:
        lm: The model.
        parts: Prompts.
        base: Model that this one was tuned from.
        reference: Any other model, whose likelihoods are compared with; the base if left out.
        budget: Number of tokens (see `melbo.audit.budget`).
        elicitors: Elicitors; `usual_elicitors` if left out.
        max_new_tokens: Length of a reply at most.
        seed: Random seed.

    Raises:
        MelboError: The budget is too small, or the base is no base of this model.
    """

    lm: LanguageModel
    parts: Parts
    base: LanguageModel | None = None
    reference: LanguageModel | None = None
    budget: int = TOKENS
    elicitors: Sequence[Elicitor] | None = None
    max_new_tokens: int = REPLY_TOKENS
    seed: int = 0
    _split: Budget = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse a budget that is too small, and a base that cannot be one.

        Raises:
            MelboError: One is given.
        """
        require(Parts, "make them by melbo.Parts.built_in(lm)", parts=self.parts)
        if self.base is not None:
            require_alike(self.lm, self.base)
        judges = 1 + (self._compared is not None)
        costs = Costs.of(self.parts.screening, self.max_new_tokens, judges)
        speakers = 1 + (self.base is not None)
        proof = ProofCosts.of(self.parts, self.max_new_tokens, speakers)
        a_proof = proof.controls + proof.a_theme
        split = Budget(self.budget, costs, len(self._tried), speakers, a_proof)
        object.__setattr__(self, "_split", split)

    @property
    def _compared(self) -> LanguageModel | None:
        return self.reference or self.base

    @property
    def _tried(self) -> Sequence[Elicitor]:
        return usual_elicitors(self.base) if self.elicitors is None else self.elicitors

    def run(self, out: str | Path, progress: bool = True) -> Findings:
        """Run the audit, or go on with it, and write the findings.

        Replies are written to the folder as they come. An audit that was cut off goes on there.

        Args:
            out: Folder of the audit.
            progress: Whether to draw a bar.

        Returns:
            The findings and all that is known of them, JSON-able, as written to
            ``findings.json``.

        Raises:
            MelboError: The folder holds an audit of other settings, or cannot be written to.
        """
        with track(self.budget, "tokens", progress) as bar:
            found, proof = self.screened(out, bar)
            proved = proof.findings(found)
        findings = sorted(proved, key=lambda f: f.score, reverse=True)
        log = proof.screening.log
        result = Findings(account(log, self.budget, self._tried, findings, len(found), self.parts))
        write_atomically({Path(out) / FINDINGS: to_json(result)})
        return result

    def screened(self, out: str | Path, bar: tqdm) -> tuple[list[Theme], Proof]:
        """Screen, or go on with that: the first half of an audit.

        Args:
            out: Folder of the audit.
            bar: Bar that is moved on by the tokens that were spent.

        Returns:
            The themes, the most promising first, and the proof that they are to be put to.

        Raises:
            MelboError: As `run`.
        """
        log = ResultLog(Path(out) / LOG)
        _check_settings(log, self._settings())
        bar.update(spent(log))
        screening = Screening(self.lm, self._compared, log, self.max_new_tokens, bar)
        sources, elicited = self._elicited(screening)
        found = self._themes(screening, elicited)
        proof = Proof(
            # likelihood ratios of what is screened tell enough
            screening=replace(screening, reference=None),
            sources=sources,
            said=elicited,
            parts=self.parts,
            tokens=self._split.proved(spent_before_proof(log)),
            folder=Path(out),
            seed=self.seed,
            base=self.base,
        )
        return found, proof

    def _elicited(self, screening: Screening) -> tuple[dict[str, Source], list[Reply]]:
        """Elicitors by name, and all replies to the screening prompts."""
        prompts, draws, seed = self.parts.screening, self._split.ordinary, self.seed
        ordinary = screening.ordinary("screen", prompts, draws, seed, self.lm)
        sources, elicited = elicit(screening, self._tried, prompts, self._split, seed)
        # what the model says by itself may be hidden too: unlike a base, or rare and everywhere
        elicited += [replace(r, elicitor=BY_ITSELF, candidate=0) for r in ordinary]
        sources[BY_ITSELF] = Source(BY_ITSELF, lambda: (Unsteered(), 0.0))
        return sources, elicited

    def _themes(self, screening: Screening, elicited: Sequence[Reply]) -> list[Theme]:
        """Themes of the replies to the screening prompts, the most promising first."""
        prompts, draws, seed = self.parts.screening, self._split.ordinary, self.seed
        if self.base is None:
            ordinary = [r for r in elicited if r.elicitor == BY_ITSELF]
        else:
            unread = replace(screening, reference=None)
            ordinary = unread.ordinary("base", prompts, draws, seed, self.base)
        found = themes(ordinary, elicited, prompts.texts, rarity_of(self.lm.tokenizer), seed)
        return sorted(found, key=order, reverse=True)

    def _settings(self) -> Row:
        """Settings that an audit shares with the one that it goes on with."""
        models = {"model": self.lm, "base": self.base, "reference": self.reference}
        parts = (self.parts.screening, self.parts.validation, self.parts.held_out)
        return {
            "stage": "settings",
            "version": VERSION,
            **{name: _described(lm) for name, lm in models.items()},
            "budget": self.budget,
            "elicitors": [e.name for e in self._tried],
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
            "prompts": [prompts.digest for prompts in parts],
        }


def _described(lm: LanguageModel | None) -> dict[str, str] | None:
    return None if lm is None else {"name": lm.name, "fingerprint": lm.fingerprint}


def _check_settings(log: ResultLog, settings: Row) -> None:
    """Write the settings of a new audit, or hold those of an interrupted one against them.

    Raises:
        MelboError: They differ.
    """
    if not log.rows:
        log.add(settings)
        return
    there = log.rows[0]
    differ = [name for name in settings if there.get(name) != settings[name]]
    if differ:
        name = differ[0]
        raise MelboError(
            f"{log.path} is of another audit ({name} was {there.get(name)!r}, now "
            f"{settings[name]!r}): give another folder, or remove the file"
        )
