"""Collection of evidence: what each recipe finds in an organism, written row by row."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from melbo.discovery.candidates import Candidates
from melbo.discovery.recipes import RECIPES, check_number, method_identity
from melbo.models.loading.load import load
from melbo.records import ResultLog, Row, environment
from research.organisms import ORGANISMS, adapter_digest, load_organism, read_organism
from research.organisms.behaviours import BEHAVIOURS
from research.organisms.discover import BENCHMARK, PROMISING, DiscoveryTrial
from research.organisms.evidence import Best, Evidence, Screened, Tested

_LEARNT = ("exponential", "soft", "quadratic", "linear", "melbo")
_UNLEARNT = ("random", "covariance", "unrelated", "columns")
#: The organism that behaviours are planted in, and its control.
PAIR = ("ALL", "SHAM")
#: Candidates without vectors: replies that begin with likely words, or are drawn.
UNSTEERED = ("prefill", "temperature")


@dataclass(frozen=True)
class Tier:
    """Amount of work.

    Attributes:
        recipes: Names of recipes.
        candidates: Number of candidates of each.
    """

    recipes: tuple[str, ...]
    candidates: int


#: Amounts of work by name.
TIERS = {
    "laptop": Tier((*_LEARNT, *_UNLEARNT, *UNSTEERED), 128),
    "full": Tier((*_LEARNT, "cpe", *_UNLEARNT, "adapters", *UNSTEERED), 512),
}


@dataclass(frozen=True)
class Job:
    """Evidence to collect.

    Attributes:
        home: Folder of the organisms.
        base: Model that they were made from.
        organisms: Names of organisms.
        recipes: Names out of `melbo.discovery.recipes.RECIPES` and `UNSTEERED`.
        candidates: Number of candidates of each recipe.
        seeds: Number of fits of each recipe.
        source: Layer that is perturbed.
        target: Layer that is read.

    Raises:
        MelboError: A recipe cannot give this number of candidates.
    """

    home: Path
    base: str
    organisms: tuple[str, ...]
    recipes: tuple[str, ...]
    candidates: int
    seeds: int
    source: int
    target: int

    def __post_init__(self) -> None:
        """Refuse a number of candidates that a recipe cannot give."""
        check_number(self.recipes, self.candidates)

    @property
    def cases(self) -> list[Row]:
        """Keys of the rows, seed after seed.

        A recipe on an organism stands next to the same on its control, so that an unfinished table
        compares like with like.
        """
        settings = [self._setting(name) for name in dict.fromkeys(self.organisms)]
        methods = {recipe: method_identity(recipe, self.candidates) for recipe in self.recipes}
        return [
            {**setting, "recipe": recipe, "method": method, "seed": seed}
            for seed in range(self.seeds)
            for recipe, method in methods.items()
            if seed == 0 or _seeded(recipe)
            for setting in settings
        ]

    def known(self, rows: ResultLog) -> list[Evidence]:
        """Evidence of this setting, of whatever organism, recipe, seed and call.

        Recipes come in the order of `melbo.discovery.recipes.RECIPES`.

        Args:
            rows: Rows collected so far.
        """
        there = [name for name in ORGANISMS if (self.home / name).is_dir()]
        evidence = [
            Evidence.from_row(row)
            for name in there
            for row in rows.of(self._setting(name))
            if row.get("method") == method_identity(row["recipe"], self.candidates)
        ]
        order = [*RECIPES, *UNSTEERED]
        return sorted(evidence, key=lambda e: order.index(e.recipe))

    def _setting(self, name: str) -> Row:
        """Entries that all rows of an organism share."""
        return {
            "organism": name,
            "adapter": adapter_digest(self.home / name),
            "judge": adapter_digest(self.home / _judge(name)),
            "candidates": self.candidates,
            "source": self.source,
            "target": self.target,
            "benchmark": BENCHMARK,
        }


def _seeded(recipe: str) -> bool:
    """Tell whether anything in a recipe is random."""
    return recipe == "temperature" or (recipe in RECIPES and RECIPES[recipe].seeded)


def _judge(organism: str) -> str:
    """Name of the organism that judges the coherence of an organism's replies.

    Itself; for the control, the one it is the control of, so that both are judged alike.
    """
    return "ALL" if organism == "SHAM" else organism


def collect(
    job: Job,
    rows: ResultLog,
    progress: bool = True,
    trial: Callable[..., DiscoveryTrial] = DiscoveryTrial,
) -> Iterator[Evidence]:
    """Measure every case that has no row yet.

    Args:
        job: Evidence to collect.
        rows: Rows collected so far, to which new ones are added.
        progress: Whether to draw bars.
        trial: Makes the trial of an organism, as `DiscoveryTrial`; a smaller one for tests.

    Yields:
        New evidence.

    Raises:
        MelboError: There is no such organism.
    """
    left = rows.missing(job.cases)
    names = dict.fromkeys(case["organism"] for case in left)
    about = {name: read_organism(job.home / name) for name in names}
    base = cache(lambda: load(job.base))

    @cache
    def trial_of(name: str) -> DiscoveryTrial:
        lm, judge = load_organism(job.home / name, job.base), _judge(name)
        return trial(
            lm,
            base(),
            lm if judge == name else load_organism(job.home / judge, job.base),
            job.source,
            job.target,
            several=len(ORGANISMS[name]) > 1,
            progress=progress,
        )

    for case in left:
        name = case["organism"]
        # an organism left alone has the skills that are held back elsewhere: they say nothing there
        sham = about[name]["sham"]
        looked_for = [b for b in ORGANISMS[name] if not (sham and BEHAVIOURS[b].skill)]
        measured = measure(trial_of(name), case["recipe"], job.candidates, case["seed"], looked_for)
        evidence = Evidence(**case, environment=environment(), **measured)
        rows.add(evidence.describe())
        yield evidence


def measure(
    trial: DiscoveryTrial,
    recipe: str,
    num: int,
    seed: int,
    looked_for: Sequence[str] = tuple(BEHAVIOURS),
) -> dict[str, Any]:
    """Find candidates, screen all, validate those that show something, and test the best.

    Args:
        trial: The organism.
        recipe: Name of a recipe, ``"prefill"`` or ``"temperature"``.
        num: Number of candidates.
        seed: Random seed.
        looked_for: Names of the behaviours to look for.

    Returns:
        The attributes of `Evidence` that are measured, by name.
    """
    tried, spent = trial.candidates(recipe, num, seed)
    seconds, tokens = {"fit": spent["seconds"]}, {"fit": spent["tokens"]}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        start, before = time.perf_counter(), trial.tokens
        yield
        seconds[name], tokens[name] = time.perf_counter() - start, trial.tokens - before

    with stage("screen"):
        screened = trial.screen(tried, looked_for)
    with stage("validation"):
        validation = {
            name: trial.test(tried, BEHAVIOURS[name], _promising(screened, name), "validation")
            for name in looked_for
        }
    with stage("test"):
        best = {name: _best(trial, tried, name, validation[name]) for name in looked_for}
    return {
        "scale": spent.get("scale"),
        "coherence": trial.coherence,
        "seconds": seconds,
        "tokens": tokens,
        "screened": screened,
        "best": best,
        "validation": validation,
    }


def _promising(screened: Screened, behaviour: str) -> list[int]:
    """Candidates that showed a behaviour, or another prompt's, often enough to be looked at."""
    both = zip(screened.shown[behaviour], screened.permuted[behaviour], strict=True)
    return [i for i, shares in enumerate(both) if max(shares) >= PROMISING]


def _best(
    trial: DiscoveryTrial, tried: Candidates, behaviour: str, validated: dict[int, Tested]
) -> Best | None:
    """The candidate that elicits a behaviour most on validation prompts, tested."""
    if not validated:
        return None
    first = max(validated, key=lambda i: validated[i].elicited)
    return Best(first, trial.test(tried, BEHAVIOURS[behaviour], [first], "test")[first])
