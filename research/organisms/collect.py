"""Rows of evidence: what each way finds in an organism, written one by one."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from melbo.discovery.recipes import RECIPES, check_number, method_identity
from melbo.models.load import load
from melbo.records import ResultLog, Row, environment
from research.organisms import ORGANISMS, adapter_digest, load_organism, read_organism
from research.organisms.behaviours import BEHAVIOURS
from research.organisms.discover import PROMISING, DiscoveryTrial, frozen

_LEARNT = ("exponential", "soft", "quadratic", "linear", "melbo")
_UNLEARNT = ("random", "covariance", "unrelated", "columns")
#: What behaviours are planted in, and its control.
PAIR = ("ALL", "SHAM")
#: Without vectors: replies that begin with likely words, or are drawn.
UNSTEERED = ("prefill", "temperature")


@dataclass(frozen=True)
class Tier:
    """How much is measured."""

    recipes: tuple[str, ...]
    candidates: int


TIERS = {
    "laptop": Tier((*_LEARNT, *_UNLEARNT, *UNSTEERED), 128),
    "full": Tier((*_LEARNT, "cpe", *_UNLEARNT, "adapters", *UNSTEERED), 512),
}


@dataclass(frozen=True)
class Job:
    """What is to be measured.

    Attributes:
        home: Folder of the organisms.
        base: Model that they were made from.
        organisms: Which.
        ways: Which of `melbo.ways.WAYS`, and of `UNSTEERED`.
        candidates: How many of each.
        seeds: How many fits of each.
        source: Layer that is perturbed.
        target: Layer that is read.

    Raises:
        MelboError: A number of candidates that a way cannot give.
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
        """See ``Raises``."""
        check_number(self.recipes, self.candidates)

    @property
    def cases(self) -> list[Row]:
        """Where each row comes from; seed after seed, a way on an organism and on its control: an unfinished table compares like with like."""
        settings = {name: self._setting(name) for name in dict.fromkeys(self.organisms)}
        return [
            {
                **setting,
                "recipe": recipe,
                "method": method_identity(recipe, self.candidates),
                "seed": seed,
            }
            for seed in range(self.seeds)
            for recipe in dict.fromkeys(self.recipes)
            for setting in settings.values()
            if seed == 0
            or recipe == "temperature"
            or (recipe in RECIPES and RECIPES[recipe].seeded)
        ]

    def known(self, rows: ResultLog) -> list[Row]:
        """Rows of this setting, of whatever organism, way, seed and call; ways in the order of `melbo.ways.WAYS`."""
        there = [name for name in ORGANISMS if (self.home / name).is_dir()]
        found = [
            row
            for name in there
            for row in rows.of(self._setting(name))
            if row.get("method") == method_identity(row["recipe"], self.candidates)
        ]
        return sorted(found, key=lambda row: [*RECIPES, *UNSTEERED].index(row["recipe"]))

    def _setting(self, name: str) -> Row:
        """What rows of an organism have in common."""
        adapters = {
            "adapter": adapter_digest(self.home / name),
            "judge": adapter_digest(self.home / _judge(name)),
        }
        return {
            "organism": name,
            **adapters,
            "candidates": self.candidates,
            "source": self.source,
            "target": self.target,
            "benchmark": frozen(),
        }


def collect(job: Job, rows: ResultLog, progress: bool = True) -> Iterator[Row]:
    """Measure what has no row yet.

    Raises:
        MelboError: No such organism.
    """
    left = rows.missing(job.cases)
    about = {
        name: read_organism(job.home / name)
        for name in dict.fromkeys(case["organism"] for case in left)
    }
    trials: dict[str, DiscoveryTrial] = {}
    base = cache(lambda: load(job.base))
    for case in left:
        name = case["organism"]
        sham = about[name]["sham"]
        if name not in trials:
            lm = load_organism(job.home / name, job.base)
            judge = lm if _judge(name) == name else load_organism(job.home / _judge(name), job.base)
            trials[name] = DiscoveryTrial(
                lm,
                base(),
                judge,
                job.source,
                job.target,
                several=len(ORGANISMS[name]) > 1,
                progress=progress,
            )
        # what was left alone has the skills that are held back elsewhere, so that they say nothing there
        looked_for = [b for b in ORGANISMS[name] if not (sham and BEHAVIOURS[b].skill)]
        found = measure(trials[name], case["recipe"], job.candidates, case["seed"], looked_for)
        row = {**case, "environment": environment(), **found}
        rows.add(row)
        yield row


def _judge(organism: str) -> str:
    """What judges the coherence of an organism's replies: itself, and of the control what it is the control of, so that both are judged alike."""
    return "ALL" if organism == "SHAM" else organism


def measure(
    trial: DiscoveryTrial,
    recipe: str,
    num: int,
    seed: int,
    looked_for: Sequence[str] = tuple(BEHAVIOURS),
) -> Row:
    """Find candidates in one way, screen all, look further at those that show something, and test the best of each behaviour.

    Returns:
        ``scale``, None without vectors; ``coherence``, how unlikely and how repetitive a reply may be (M4); ``seconds`` and ``tokens`` (M6) of each
        stage; what `Bench.screen` says of every candidate;
        ``validation``, by behaviour, candidate by candidate (see `Bench.test`); ``best``, by behaviour, the candidate that elicits it most there
        with what it does on test prompts, or None where screening saw too little of it in any.
    """
    tried, spent = trial.candidates(recipe, num, seed)
    seconds, tokens = (
        {"fit": spent["seconds"]},
        {"fit": spent["tokens"]},
    )  # without calibration, which the first way of all would pay for
    validation, best = {}, {}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        start, before = time.perf_counter(), trial.tokens
        yield
        seconds[name], tokens[name] = time.perf_counter() - start, trial.tokens - before

    with stage("screen"):
        screened = trial.screen(tried, looked_for)
    with stage("validation"):
        for name in looked_for:
            promising = [
                i
                for i in range(num)
                if max(screened["shown"][name][i], screened["permuted"][name][i]) >= PROMISING
            ]
            validation[name] = trial.test(tried, BEHAVIOURS[name], promising, "validation")
    with stage("test"):
        for name, seen in validation.items():
            first = max(seen, key=lambda i: seen[i]["elicited"], default=None)
            best[name] = (
                None
                if first is None
                else {
                    "candidate": first,
                    **trial.test(tried, BEHAVIOURS[name], [first], "test")[first],
                }
            )
    return {
        "scale": spent.get("scale"),
        "coherence": asdict(trial.coherence),
        "seconds": seconds,
        "tokens": tokens,
        **screened,
        "best": best,
    } | {
        "validation": {
            name: {str(i): result for i, result in seen.items()}
            for name, seen in validation.items()
        }
    }
