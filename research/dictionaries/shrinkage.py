"""Shrinkage on sums of known directions: four architectures at the same L0, over seeds."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from melbo.dictionary import Training, make, measure, train
from melbo.evaluation.tables import cell, markdown
from melbo.maths.geometry import match
from melbo.maths.linalg import random_rows
from melbo.records import ResultLog, Row, environment
from research.dictionaries import RESULTS

VERSION = 1
ROWS = RESULTS / "shrinkage.jsonl"
SEEDS = (0, 1, 2, 3, 4)
_MEASURES = {
    "l0": "L0",
    "gamma_centred": "γ",
    "relative_norm": "‖x̂‖/‖x‖",
    "variance_explained": "variance explained",
    "dead": "dead",
    "recovered": "planted directions, best cosine",
}
#: L0 at which kinds are compared. The truth has 3.
L0 = 6.0
#: Weights λ by kind, such that L0 comes out on either side.
WEIGHTS = {
    "relu": (1.0, 1.6),
    "rescale-and-shift": (1.0, 1.6),
    "gated": (1.6, 2.4),
    "stepless": (2.8, 4.0),
}


@dataclass(frozen=True)
class Truth:
    """Activations as sums of directions, with noise.

    Attributes:
        width: Their width d.
        directions: Number of directions.
        active: Probability that one is active.
        noise: Standard deviation of the noise of each coordinate.
        seed: Random seed of directions and activations.
    """

    width: int = 32
    directions: int = 64
    active: float = 3 / 64
    noise: float = 0.05
    seed: int = 0

    @property
    def rows(self) -> Tensor:
        """The directions, unit rows ``[directions, width]``."""
        return random_rows(self.directions, self.width, torch.Generator().manual_seed(self.seed))

    def batches(self, size: int, stream: int = 0) -> Iterator[Tensor]:
        """Activations ``[size, 1, width]`` without end; strengths are uniform from .5 to 1.5.

        Args:
            size: Number of activations of a batch.
            stream: Number of the stream: others are independent of it.
        """
        generator = torch.Generator().manual_seed(1000 * (self.seed + 1) + stream)
        rows = self.rows
        while True:
            shape = (size, self.directions)
            on = torch.rand(shape, generator=generator) < self.active
            strengths = on * (0.5 + torch.rand(shape, generator=generator))
            noise = self.noise * torch.randn(size, self.width, generator=generator)
            yield (strengths @ rows + noise)[:, None]


@dataclass(frozen=True)
class Case:
    """A dictionary to train.

    Attributes:
        kind: Its architecture.
        weight: λ.
        seed: Random seed of the truth and of the dictionary.
        steps: Number of steps.
        batch: Activations of a step.
    """

    kind: str
    weight: float
    seed: int
    steps: int = 3000
    batch: int = 512

    def describe(self) -> Row:
        """The case as a row names it."""
        return {"version": VERSION, **asdict(self)}

    def measure(self) -> Row:
        """Train the dictionary and measure it on activations of their own."""
        begun = time.perf_counter()
        truth = Truth(seed=self.seed)
        dictionary = make(self.kind, truth.width, truth.directions, seed=self.seed + 100)
        settings = Training(
            tokens=self.steps * self.batch,
            batch=self.batch,
            rate=3e-3,
            sparsity=self.weight,
            dead_after=20_000,
        )
        train(
            [dictionary],
            truth.batches(self.batch),
            next(truth.batches(8192, 1)),
            settings,
            progress=False,
        )
        found = measure(dictionary, [next(truth.batches(20_000, 2))[:, 0]])
        return {
            **self.describe(),
            **found.describe(),
            "recovered": match(truth.rows, dictionary.W_dec).cosine.mean().item(),
            "seconds": time.perf_counter() - begun,
            "environment": environment(),
        }


def cases() -> list[Case]:
    """All cases, seed by seed."""
    return [
        Case(kind, weight, seed) for seed in SEEDS for kind in WEIGHTS for weight in WEIGHTS[kind]
    ]


def measure_all(log: ResultLog) -> Iterator[Row]:
    """Measure the cases that have no row yet.

    Args:
        log: The rows.
    """
    for case in cases():
        if not log.of(case.describe()):
            row = case.measure()
            log.add(row)
            yield row


def at_same_l0(rows: Sequence[Row], kind: str, name: str) -> list[float]:
    """A measure at `L0`, seed by seed, between the rows nearest to it.

    Between rows it is linear in log L0; beyond all of them it is that of the last.

    Args:
        rows: Rows of this version.
        kind: The architecture.
        name: The measure.
    """
    found = []
    for seed in SEEDS:
        own = [row for row in rows if (row["kind"], row["seed"]) == (kind, seed)]
        own.sort(key=lambda row: row["l0"])
        at = [math.log(row["l0"]) for row in own]
        values = [row[name] for row in own]
        found.append(float(np.interp(math.log(L0), at, values)))
    return found


def page_tables() -> dict[str, str]:
    """Tables that pages may quote, by name, made from the committed rows."""
    rows = [row for row in ResultLog(ROWS).rows if row["version"] == VERSION]
    if not rows:
        return {}
    lines = [
        [kind, *(cell(at_same_l0(rows, kind, name)) for name in _MEASURES)] for kind in WEIGHTS
    ]
    both = [[at_same_l0(rows, kind, name) for name in _MEASURES] for kind in ("gated", "stepless")]
    differences = [[a - b for a, b in zip(*each, strict=True)] for each in zip(*both, strict=True)]
    lines.append(["gated − stepless, by seed", *map(cell, differences)])
    return {"dictionaries-shrinkage": markdown(["", *_MEASURES.values()], lines)}
