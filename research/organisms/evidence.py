"""Evidence: one fit of a recipe on an organism, or one set of unlearnt candidates."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from melbo.errors import MelboError
from melbo.records import Row
from research.organisms.metrics import Coherence


@dataclass(frozen=True)
class Tested:
    """Shares of prompts on which a candidate shows a behaviour.

    Attributes:
        shown: Share of replies that show it.
        elicited: Share of replies that show it coherently.
        permuted: Share of replies that show it for another prompt, or the secret of another word.
            It is the control of a skill.
        said: Prompt and reply, the first that elicits it; None if none does.
    """

    shown: float
    elicited: float
    permuted: float
    said: tuple[str, str] | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Inverse of `describe`."""
        said = row.get("said")
        return cls(row["shown"], row["elicited"], row["permuted"], tuple(said) if said else None)

    def describe(self) -> Row:
        """All of it, JSON-able."""
        return {**asdict(self), "said": list(self.said) if self.said else None}


@dataclass(frozen=True)
class Best:
    """The candidate that elicits a behaviour most on validation prompts.

    Attributes:
        candidate: Its index.
        tested: Its shares on test prompts.
    """

    candidate: int
    tested: Tested

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Inverse of `describe`."""
        return cls(row["candidate"], Tested.from_row(row))

    def describe(self) -> Row:
        """All of it, JSON-able."""
        return {"candidate": self.candidate, **self.tested.describe()}


@dataclass(frozen=True)
class Screened:
    """Replies of every candidate to the screening prompts, in numbers.

    Attributes:
        shown: By behaviour, the share of prompts on which each candidate shows it.
        permuted: By behaviour, the share on which each shows it for another prompt, or the secret
            of another word.
        flags: ``"inert"``, ``"broken"`` or ``"active"`` for each candidate, from its replies to
            ordinary prompts, behind which nothing is hidden.
        novel: Novelty of each candidate's fluent replies to ordinary prompts.
        distinct: Number of candidates that can be told apart there (M5).
    """

    shown: dict[str, list[float]]
    permuted: dict[str, list[float]]
    flags: list[str]
    novel: list[float]
    distinct: float


@dataclass(frozen=True)
class Evidence:
    """One row of evidence.

    Attributes:
        organism: Name of the organism.
        adapter: Digest of its adapter.
        judge: Digest of the adapter that judges coherence.
        recipe: Name of the recipe, ``"prefill"`` or ``"temperature"``.
        method: Identity of the recipe's method (`melbo.discovery.recipes.method_identity`); None
            where nothing is learnt.
        seed: Random seed.
        candidates: Number of candidates.
        source: Layer that is perturbed.
        target: Layer that is read.
        benchmark: Version of the benchmark (`research.organisms.discover.BENCHMARK`).
        environment: Versions and machine.
        scale: R; None where there are no vectors.
        coherence: Limits of a coherent reply (M4); None in rows that were written before the
            limits were kept.
        seconds: Seconds of each stage: fit, screen, validation, test. Calibration is left out: only
            the first recipe of a run would bear it.
        tokens: Cost of each stage in tokens (M6).
        screened: Replies to the screening prompts, in numbers.
        best: By behaviour, the candidate that was tested; None where screening saw too little of
            the behaviour in every candidate.
        validation: By behaviour, the candidates that screening found promising, by their index.
    """

    organism: str
    adapter: str
    judge: str
    recipe: str
    method: dict[str, Any] | None
    seed: int
    candidates: int
    source: int
    target: int
    benchmark: int
    environment: dict[str, Any]
    scale: float | None
    coherence: Coherence | None
    seconds: dict[str, float]
    tokens: dict[str, float]
    screened: Screened
    best: dict[str, Best | None]
    validation: dict[str, dict[int, Tested]]

    @classmethod
    def from_row(cls, row: Row) -> Self:
        """Inverse of `describe`.

        Raises:
            MelboError: The row lacks an entry, or has one that is unknown.
        """
        screened = {f.name for f in fields(Screened)}
        names = {f.name for f in fields(cls)} - {"screened"} | screened
        if (given := {"coherence", *row}) != names:
            raise MelboError(
                f"a row has wrong entries ({', '.join(sorted(given ^ names))}): "
                "expected a row that research.organisms.collect wrote"
            )
        limits = row.get("coherence")
        validation = {
            b: {int(i): Tested.from_row(seen) for i, seen in each.items()}
            for b, each in row["validation"].items()
        }
        best = {b: None if seen is None else Best.from_row(seen) for b, seen in row["best"].items()}
        coherence = None if limits is None else Coherence(**limits)
        own = {k: v for k, v in row.items() if k not in screened}
        own |= {"coherence": coherence, "validation": validation, "best": best}
        return cls(**own, screened=Screened(**{k: row[k] for k in screened}))

    def describe(self) -> Row:
        """All of it, JSON-able; what screening saw stands beside the rest, not in a dict."""
        validation = {
            b: {str(i): seen.describe() for i, seen in each.items()}
            for b, each in self.validation.items()
        }
        best = {b: None if seen is None else seen.describe() for b, seen in self.best.items()}
        coherence = None if self.coherence is None else asdict(self.coherence)
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "screened"}
        rest = {"coherence": coherence, "best": best, "validation": validation}
        return {**own, **vars(self.screened), **rest}

    @property
    def order(self) -> list[int]:
        """Candidates in the order of reading, which knows no behaviour.

        Active ones first, then by the novelty of their fluent replies to ordinary prompts.
        """
        flags, novel = self.screened.flags, self.screened.novel
        return sorted(range(len(flags)), key=lambda i: (flags[i] != "active", -novel[i]))

    def shares(self, behaviour: str, what: str = "elicited") -> list[float]:
        """Share of the validation prompts on which each candidate elicits a behaviour.

        Args:
            behaviour: Name of the behaviour.
            what: ``"shown"``, ``"elicited"`` or ``"permuted"``.

        Returns:
            The shares; 0 where screening, on other prompts, saw too little of the behaviour.
        """
        seen = self.validation.get(behaviour, {})
        return [getattr(seen[i], what) if i in seen else 0.0 for i in range(self.candidates)]

    def hits(self, behaviour: str, limit: float, what: str = "elicited") -> list[bool]:
        """Tell whether each candidate reaches a limit, in the order of reading.

        Args:
            behaviour: Name of the behaviour.
            limit: Share of a hit.
            what: As in `shares`.
        """
        shares = self.shares(behaviour, what)
        return [shares[i] >= limit for i in self.order]

    def on_test(self, behaviour: str, what: str = "elicited") -> float | None:
        """Share of the test prompts on which the best candidate elicits a behaviour.

        Args:
            behaviour: Name of the behaviour.
            what: As in `shares`.

        Returns:
            The share; None if no candidate was tested.
        """
        best = self.best.get(behaviour)
        return None if best is None else getattr(best.tested, what)


def of_organism(evidence: Sequence[Evidence], name: str) -> list[Evidence]:
    """Evidence of one organism.

    Args:
        evidence: Any evidence.
        name: Name of the organism.
    """
    return [e for e in evidence if e.organism == name]
