"""Rows of evidence: what each way finds in an organism, written one by one, and the table that is made of them."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from ..bench import environment
from ..compare import over, text
from ..errors import MelboError
from ..load import load
from ..rows import Row, Rows
from ..ways import WAYS
from . import ORGANISMS, adapter_digest, load_organism, read_organism
from .behaviours import BEHAVIOURS
from .discover import PROMISING, Bench, frozen
from .metrics import blind_recall, random_recall, reads_to_first_hit, threshold

READS = (1, 8, 32, 128, 512)
_LEARNT = ("exponential", "soft", "quadratic", "linear", "melbo")
_UNLEARNT = ("random", "covariance", "unrelated")


@dataclass(frozen=True)
class Tier:
    """How much is measured."""

    ways: tuple[str, ...]
    candidates: int


TIERS = {"laptop": Tier((*_LEARNT, *_UNLEARNT), 128), "full": Tier((*_LEARNT, "cpe", *_UNLEARNT, "adapters"), 512)}


@dataclass(frozen=True)
class Job:
    """What is to be measured.

    Attributes:
        home: Folder of the organisms.
        base: Model that they were made from.
        organisms: Which.
        ways: Which of `melbo.ways.WAYS`.
        candidates: How many of each.
        seeds: How many fits of each.
        source: Layer that is perturbed.
        target: Layer that is read.
    """

    home: Path
    base: str
    organisms: tuple[str, ...]
    ways: tuple[str, ...]
    candidates: int
    seeds: int
    source: int
    target: int

    @property
    def cases(self) -> list[Row]:
        """Where each row comes from; seed after seed, so that an unfinished table compares like with like."""
        settings = {"candidates": self.candidates, "source": self.source, "target": self.target, "benchmark": frozen()}
        adapters = {name: adapter_digest(self.home / name) for name in self.organisms}
        return [
            {"organism": name, "adapter": adapters[name], "way": way, "seed": seed, **settings}
            for name in self.organisms
            for seed in range(self.seeds)
            for way in self.ways
            if seed == 0 or WAYS[way].seeded
        ]


def collect(job: Job, rows: Rows, progress: bool = True) -> Iterator[Row]:
    """Measure what has no row yet.

    Raises:
        MelboError: No such organism, or one whose gates have not been tried.
    """
    left = rows.missing(job.cases)
    for name in dict.fromkeys(case["organism"] for case in left):
        about = read_organism(job.home / name)
        if "gates" not in about:
            raise MelboError(f"the gates of {name} have not been tried: python benchmarks/organisms/make.py")
        lm = load_organism(job.home / name, job.base)
        judge = load_organism(job.home / "ALL", job.base) if about["sham"] else lm
        bench = Bench(lm, load(job.base), judge, job.source, job.target, several=len(ORGANISMS[name]) > 1, progress=progress)
        for case in (case for case in left if case["organism"] == name):
            # what was left alone has the skills that are held back elsewhere, so that they say nothing there
            looked_for = [b.name for b in BEHAVIOURS.values() if not (about["sham"] and b.skill)]
            found = measure(bench, case["way"], job.candidates, case["seed"], looked_for)
            row = {**case, "date": environment()["date"], "admitted": admitted(about), **found}
            rows.add(row)
            yield row


def admitted(about: dict[str, Any]) -> list[str]:
    """Behaviours of an organism all of whose gates were passed."""
    return [name for name in about["behaviours"] if all(gate["passed"] for gate in about["gates"] if gate["behaviour"] in (name, None))]


def measure(bench: Bench, way: str, num: int, seed: int, looked_for: Sequence[str] = tuple(BEHAVIOURS)) -> Row:
    """Find candidates in one way, screen all, test those that show something.

    Returns:
        ``passes``, ``scale``, ``seconds`` of each stage; what `Bench.screen` says of every candidate; ``tested``, by behaviour, candidate by
        candidate (see `Bench.test`).
    """
    bank, spent = bench.candidates(way, num, seed)
    seconds, start = {"fit": spent["seconds"]}, time.perf_counter()  # without calibration, which the first way of all would pay for
    screened = bench.screen(bank)
    seconds["screen"] = time.perf_counter() - start
    tested = {}
    for name in looked_for:
        promising = [i for i in range(len(bank)) if max(screened["shown"][name][i], screened["permuted"][name][i]) >= PROMISING]
        tested[name] = {str(i): result for i, result in bench.test(bank, BEHAVIOURS[name], promising).items()}
    seconds["test"] = time.perf_counter() - start - seconds["screen"]
    return {"scale": bank.scale, "passes": spent["passes"], "seconds": seconds, **screened, "tested": tested}


def blind_order(row: Row) -> list[int]:
    """Candidates in the order of reading, which knows of no behaviour: active first, then by how novel yet fluent they are."""
    novel = [mean(of) for of in zip(*row["novel"].values(), strict=True)]
    return sorted(range(len(novel)), key=lambda i: (row["flags"][i] != "active", -novel[i]))


def elicited(row: Row, behaviour: str, what: str = "elicited") -> list[float]:
    """On which share of the test prompts each candidate elicits a behaviour; 0 where screening saw too little of it."""
    tested = row["tested"].get(behaviour, {})
    return [tested.get(str(i), {what: 0.0})[what] for i in range(len(row["flags"]))]


def hits(row: Row, behaviour: str, limit: float, what: str = "elicited") -> list[bool]:
    """Which candidates are hits."""
    return [share >= limit for share in elicited(row, behaviour, what)]


def limits(rows: Sequence[Row], behaviours: Sequence[str]) -> dict[str, float]:
    """From which share on a candidate is a hit: of random candidates on the control; of a skill, of random ones held against another question."""
    found = {}
    for b in behaviours:
        organism, what = ("ALL", "permuted") if BEHAVIOURS[b].skill else ("SHAM", "elicited")
        null = [row for row in rows if (row["organism"], row["way"]) == (organism, "random")]
        found[b] = threshold([share for row in null for share in elicited(row, b, what)])
    return found


def summarise(rows: Sequence[Row], null: Sequence[Row] | None = None, behaviours: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Of every way: recall of ALL and of its control, reads to the first hit, shares of flags, cost; ``[mean, deviation]`` over seeds.

    Args:
        rows: Of one setting.
        null: Rows among which the random candidates are that `limits` are taken from; by default the same.
        behaviours: Which count; by default those that were admitted.
    """
    of_all = [row for row in rows if row["organism"] == "ALL"]
    behaviours = behaviours or [b for b in BEHAVIOURS if of_all and b in of_all[0]["admitted"]]
    least = limits(rows if null is None else null, behaviours)
    table = []
    for way in dict.fromkeys(row["way"] for row in of_all if behaviours):
        sham = {row["seed"]: row for row in rows if (row["way"], row["organism"]) == (way, "SHAM")}
        cases = [_case(row, sham.get(row["seed"]), behaviours, least) for row in of_all if row["way"] == way]
        table.append({"way": way, "seeds": len(cases), **{key: over([case[key] for case in cases]) for key in cases[0]}})
    return table


def _case(row: Row, sham: Row | None, behaviours: Sequence[str], least: dict[str, float]) -> dict[str, Any]:
    """One way and seed; a first hit that never comes counts as one read more than there are candidates."""
    order, n = blind_order(row), len(row["flags"])
    found = [[hits(row, b, least[b])[i] for i in order] for b in behaviours]
    control = _control(row, sham, behaviours, least)
    case: dict[str, Any] = {}
    for k in (k for k in READS if k <= n):
        case[f"recall@{k}"] = blind_recall(found, k)
        case[f"control@{k}"] = None if control is None else blind_recall(control, k)
        case[f"difference@{k}"] = None if control is None else blind_recall(found, k) - blind_recall(control, k)
        case[f"random-order recall@{k}"] = random_recall([sum(f) for f in found], n, k)
        case[f"random-order control@{k}"] = None if control is None else random_recall([sum(f) for f in control], n, k)
    first = reads_to_first_hit(found)
    case |= {"first hit": n + 1 if first is None else first, "has a hit": float(first is not None)}
    case |= {f"{b} hits": sum(f) for b, f in zip(behaviours, found, strict=True)}
    case |= {flag: row["flags"].count(flag) / n for flag in ("inert", "broken", "active")}
    return {**case, "passes": row["passes"], "seconds": sum(row["seconds"].values())}


def _control(row: Row, sham: Row | None, behaviours: Sequence[str], limits: dict[str, float]) -> list[list[bool]] | None:
    if sham is None:
        return None
    orders = {name: blind_order(r) for name, r in (("ALL", row), ("SHAM", sham))}
    found = []
    for b in behaviours:
        # of a skill the control is the same reply held against another question
        r, name, what = (row, "ALL", "permuted") if BEHAVIOURS[b].skill else (sham, "SHAM", "elicited")
        found.append([hits(r, b, limits[b], what)[i] for i in orders[name]])
    return found


def table(summary: Sequence[dict[str, Any]]) -> str:
    """The summary as a table in Markdown."""
    if not summary:
        return "no rows of ALL yet\n"
    keys = [k for k in summary[0] if k not in ("way", "seeds")]
    lines = ["| way | seeds | " + " | ".join(keys) + " |", "|---" * (2 + len(keys)) + "|"]
    lines += [f"| {row['way']} | {row['seeds']} | " + " | ".join(text(row[k]) for k in keys) + " |" for row in summary]
    return "\n".join(lines) + "\n"
