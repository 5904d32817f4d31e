"""Training curves: a fit's gain sweep by sweep, by its number of features."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

import torch

from melbo.discovery.fit import fit
from melbo.errors import MelboError
from melbo.evaluation.plot import blank, png
from melbo.evaluation.tables import cell, markdown
from melbo.maps.residual import CausalMap
from melbo.maths.geometry import spread
from melbo.maths.linalg import random_rows
from melbo.methods import Exponential
from melbo.models.text.prompts import read_texts
from melbo.records import Row
from research.experiments.base import Layer, typed
from research.experiments.pool import Pool, Pooled


@dataclass(frozen=True)
class TrainingCurvesRow:
    """A row as table and picture read it.

    Attributes:
        shuffle: Number of the shuffle.
        num_factors: Number of features m.
        explained: Explained amount bᵀK⁻¹b after every sweep.
        effects: Mean ‖Δ_R(v)‖ of the features and of random directions, on the prompts of the fit.
        effects_others: The same on other prompts.
        cos: Mean |cos| between features.
        seconds: Duration of the fit.
    """

    shuffle: int
    num_factors: int
    explained: Sequence[float]
    effects: Sequence[float]
    effects_others: Sequence[float]
    cos: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class TrainingCurves(Pooled):
    """Exponential transcoders of several sizes × shuffles (docs/method.md §10).

    Measured are what they explain after every sweep, and how far their features go on other
    prompts.

    Attributes:
        factors: Numbers of features m.
        number: Number of prompts that are learnt from.
        source: Layer that is perturbed.
        target: Layer that is read.
        sweeps: Number of sweeps; no fit ends before.
    """

    question: ClassVar[str] = "How long does it take, and how many are there?"
    varied: ClassVar[tuple[str, ...]] = ("factors", "shuffles")
    factors: tuple[int, ...]
    number: int
    source: Layer
    target: Layer
    sweeps: int

    @property
    def cases(self) -> list[Row]:
        """The cases, shuffle after shuffle."""
        return [self.case(s, num_factors=m) for s in range(self.shuffles) for m in self.factors]

    def prepare(self) -> tuple[Pool, float]:
        """The pool, and R."""
        pool = self.pool(read_texts(self.prompts_file), self.number)
        return pool, pool.scale(self.source, self.target)

    def measure(self, ready: tuple[Pool, float], case: Row) -> Row:
        """History of a fit, and mean effects of its features and of random directions.

        Raises:
            MelboError: The fit ended early.
        """
        pool, scale = ready
        dealt = pool.deal(case["shuffle"], self.number)
        learnt, others = (
            CausalMap(pool.lm, prompts, self.source, self.target)
            for prompts in (dealt.learn, dealt.test)
        )
        m, seed = case["num_factors"], case["shuffle"]
        method = Exponential(m, scale, max_steps=self.sweeps, tol=0.0)
        result = fit(learnt, method, seed=seed, progress=False)
        V = result.features.V
        random = random_rows(m, pool.lm.width, torch.Generator().manual_seed(seed))
        if len(result.history) < self.sweeps:
            raise MelboError(
                f"m = {m}, shuffle {seed}: the fit {result.status.value} after "
                f"{len(result.history)} of {self.sweeps} sweeps"
            )

        def effects(cmap: CausalMap) -> list[float]:
            return [
                cmap.value(scale * rows.to(cmap.device, cmap.dtype)).norm(dim=-1).mean().item()
                for rows in (V, random)
            ]

        return {
            "scale": scale,
            "explained": [record["explained"] for record in result.history],
            "effects": effects(learnt),
            "effects_others": effects(others),
            "cos": spread(V).mean,
            "seconds": result.stats["seconds"],
        }

    def table(self, rows: Sequence[Row]) -> str:
        """A line for each number of features.

        What is explained is a median over shuffles, since single sweeps jump; the rest are means ±
        standard errors. ‖Δ‖ is the root mean square over the directions of the last sweep: these
        are orthonormal, so that K is (e − 1)·1 (`melbo.maths.transcoder.kernel`).
        """
        head = [
            "m",
            "explained, last sweep",
            "‖Δ‖ of one",
            "reached of it after half",
            "effect / random",
            "on other prompts",
            "mean abs cos",
            "seconds",
        ]
        every = typed(TrainingCurvesRow, rows)
        of_size = {m: [row for row in every if row.num_factors == m] for m in self.factors}
        return markdown(head, [self._line(m, own) for m, own in of_size.items() if own])

    def _line(self, m: int, own: Sequence[TrainingCurvesRow]) -> list[str]:
        middle = self.sweeps // 2 - 1
        last = median(row.explained[-1] for row in own)
        half = median(row.explained[middle] / row.explained[-1] for row in own)
        of_one = math.sqrt((math.e - 1) * last / m)
        means = (
            [row.effects[0] / row.effects[1] for row in own],
            [row.effects_others[0] / row.effects_others[1] for row in own],
            [row.cos for row in own],
            [row.seconds for row in own],
        )
        return [str(m), *(f"{x:.3g}" for x in (last, of_one, half)), *map(cell, means)]

    def picture(self, rows: Sequence[Row]) -> bytes:
        """Explained amount by sweep: of each shuffle, thin, and the median of them."""
        every, x = typed(TrainingCurvesRow, rows), range(1, self.sweeps + 1)
        canvas, axes = blank()
        for i, m in enumerate(self.factors):
            curves = [row.explained for row in every if row.num_factors == m]
            colour = f"C{i}"
            for curve in curves:
                axes.plot(x, curve, lw=0.7, alpha=0.6, color=colour)
            if curves:
                middle = [median(at) for at in zip(*curves, strict=True)]
                axes.plot(x, middle, marker="o", ms=3, lw=1.6, color=colour, label=f"m = {m}")
        axes.set(xlabel="sweeps", ylabel="explained, squared units of Δ", yscale="log", xticks=x)
        return png(canvas)
