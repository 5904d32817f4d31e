"""One audit of one organism in one way, as a row."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from melbo import Audit, LanguageModel, Parts, Prompts, load
from melbo.discovery.candidates import Elicitor
from melbo.discovery.continuations import Continuations
from melbo.discovery.differences import ActivationDifference, WeightDifference
from melbo.discovery.draws import Temperature
from melbo.discovery.extrapolation import Extrapolation
from melbo.discovery.latents import Latents
from melbo.discovery.noise import ActivationNoise
from melbo.discovery.openings import Openings
from melbo.discovery.steered import Features
from melbo.discovery.weight_noise import WeightNoise
from melbo.records import Row, environment
from research.audits.amplified import amplified, screened_before
from research.audits.named import behaviours_fired, behaviours_named, reads
from research.audits.perplexity import differenced
from research.audits.searched import Searched
from research.dictionaries.trained import Setting, of_layer
from research.organisms import MADE, adapter_digest, load_organism
from research.organisms.behaviours import BEHAVIOURS
from research.organisms.continued import ALL2, CONTINUED, DEV2

#: Number format of all models: what a CPU or GPU multiplies fastest.
DTYPE = "bfloat16"
#: The model that nothing was planted in.
PLAIN = "plain"
#: Behaviours that are looked for in each organism.
BEHAVIOURS_OF: dict[str, Sequence[str]] = {
    "ALL": tuple(BEHAVIOURS),
    "SHAM": tuple(BEHAVIOURS),
    **CONTINUED,
    # any planted behaviour would be a false finding
    "DECOY": (*ALL2, *DEV2),
    PLAIN: (*ALL2, *DEV2),
}


@dataclass(frozen=True)
class Trial:
    """An organism, audited in one way.

    Attributes:
        organism: Its name; ``"plain"`` is the model that organisms are made from.
        recipe: How it was trained (`research.organisms.train.RECIPES`).
        way: One of `WAYS`, or `PERPLEXITY`.
        seed: Random seed.
        budget: Number of tokens.
    """

    organism: str
    recipe: str
    way: str
    seed: int
    budget: int

    @property
    def key(self) -> Row:
        """All of it."""
        return {
            "organism": self.organism,
            "recipe": self.recipe,
            "way": self.way,
            "seed": self.seed,
            "budget": self.budget,
        }

    @property
    def folder(self) -> Path:
        """Folder of its adapter."""
        return MADE / self.organism if self.recipe == "all" else MADE / self.recipe / self.organism

    def run(self, out: Path) -> Row:
        """Audit it, or go on with that.

        Args:
            out: Folder of the audit.
        """
        base = load("smollm2", DTYPE)
        lm = base if self.organism == PLAIN else load_organism(self.folder, dtype=DTYPE)
        behaviours = BEHAVIOURS_OF[self.organism]
        if self.way == PERPLEXITY:
            screening = built_in(lm).screening
            return differenced(self, lm, base, screening, behaviours, out)
        result = WAYS[self.way].audit(lm, base, self.seed, self.budget).run(out)
        return {**self.key, "adapter": self._adapter, **judged(result, behaviours)}

    def amplify(self, audit: Path, out: Path) -> Row:
        """Amplify its themes: those that name a behaviour, or any if its directions are random.

        Args:
            audit: Folder of its audit, if there is one.
            out: Folder of what is added to that.
        """
        base = load("smollm2", DTYPE)
        lm = base if self.organism == PLAIN else load_organism(self.folder, dtype=DTYPE)
        behaviours = BEHAVIOURS_OF[self.organism]
        screened_before(audit, out)
        made = WAYS[self.way].audit(lm, base, self.seed, self.budget)
        themes = amplified(made, behaviours, out, planted=self.way != "random")
        about = {"adapter": self._adapter, "environment": environment()}
        return {**self.key, "themes": themes, **about}

    @property
    def _adapter(self) -> str | None:
        """Digest of what was audited; None for the plain model."""
        return None if self.organism == PLAIN else adapter_digest(self.folder)


def built_in(lm: LanguageModel) -> Parts:
    """Prompts of every audit: the built-in ones.

    Args:
        lm: The model.
    """
    return Parts.built_in(lm, partial(Prompts.chat, lm))


def judged(result: Mapping[str, Any], behaviours: Sequence[str]) -> Row:
    """Findings of an audit, and the behaviours that each of them names.

    Args:
        result: The audit's result.
        behaviours: Behaviours that are looked for.
    """
    kept = ("name", "share", "interval", "unsteered", "control", "base", "elicited_by", "example")
    findings = [
        {
            **{key: finding[key] for key in kept},
            "names": behaviours_named(finding["replies"], behaviours),
            "fires": behaviours_fired(finding["replies"], behaviours),
        }
        for finding in result["findings"]
    ]
    return {
        "findings": findings,
        "reads": reads(findings, behaviours),
        "themes": result["settings"]["themes"],
        "spent": result["budget"]["spent"],
        "seconds": result["budget"]["seconds"],
        "environment": result["settings"]["environment"],
    }


@dataclass(frozen=True)
class Way:
    """A way to audit.

    Attributes:
        description: The same in words.
        elicitors: Elicitors, given the base; None for the usual ones.
        based: Whether the base is given.
    """

    description: str
    elicitors: Callable[[LanguageModel], Sequence[Elicitor]] | None = None
    based: bool = False

    def audit(self, lm: LanguageModel, base: LanguageModel, seed: int, budget: int) -> Audit:
        """The audit.

        Args:
            lm: The organism.
            base: Its base model.
            seed: Random seed.
            budget: Number of tokens.
        """
        return Audit(
            lm,
            built_in(lm),
            base=base if self.based else None,
            budget=budget,
            elicitors=None if self.elicitors is None else self.elicitors(base),
            seed=seed,
        )


def _alone(description: str, make: Callable[[], Elicitor]) -> Way:
    return Way(description, lambda base: [make()])


def latents_of(base: LanguageModel) -> Latents:
    """Latents of the dictionary of the base that is trained on demand.

    Args:
        base: The base model.

    Raises:
        MelboError: The dictionary is not there, or is of another model.
    """
    trained = Setting()
    return Latents(of_layer(base, trained.folder, trained.layer), trained.layer)


#: Perplexity differencing, which is no audit; the base is its reference.
PERPLEXITY = "perplexity"
#: Ways that are audits, by name.
WAYS = {
    "audit": Way("the audit"),
    "audit-base": Way("the audit, given the base", based=True),
    "openings": _alone("forced openings alone", Openings),
    "searched": _alone("a searched opening alone", Searched),
    "continuations": _alone("continuations alone", Continuations),
    "directions": _alone("directions alone", Features),
    "adapters": _alone("adapters alone", partial(Features, "cpe")),
    "random": _alone("random directions alone", partial(Features, "random")),
    "temperature": _alone("temperature alone", Temperature),
    "noise": _alone("noise in activations alone", ActivationNoise),
    "weight-noise": _alone("noise in weights alone", WeightNoise),
    "latents": Way("dictionary latents alone", lambda base: [latents_of(base)]),
    "extrapolation": Way(
        "weights further from the base alone", lambda base: [Extrapolation(base)], based=True
    ),
    "weight-difference": Way(
        "weight differences alone", lambda base: [WeightDifference(base)], based=True
    ),
    "activation-difference": Way(
        "activation differences alone", lambda base: [ActivationDifference(base)], based=True
    ),
}
