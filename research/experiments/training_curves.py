"""How long does it take, and how many are there? What a fit gains sweep by sweep, for several numbers of features."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
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
from melbo.models.prompts import read_texts
from melbo.records import Row
from research.experiments.pool import Pool, Pooled


@dataclass(frozen=True, kw_only=True)
class TrainingCurves(Pooled):
    """Exponential transcoders of several sizes × shuffles: what they explain after every sweep, and how far their features go on other prompts.

    Attributes:
        factors: Numbers of features m.
        number: How many prompts are learnt from.
        source: Layer that is perturbed.
        target: Layer that is read.
        sweeps: How many; a fit does not end before.
    """

    question: ClassVar[str] = "How long does it take, and how many are there?"
    varied: ClassVar[tuple[str, ...]] = ("factors", "shuffles")
    factors: tuple[int, ...]
    number: int
    source: int
    target: int
    sweeps: int

    @property
    def cases(self) -> list[Row]:
        """Shuffle after shuffle."""
        return [self.case(s, num_factors=m) for s in range(self.shuffles) for m in self.factors]

    def prepare(self) -> tuple[Pool, float]:
        """The pool, and R."""
        pool = self.pool(read_texts(Path(self.prompts)), self.number)
        return pool, pool.scale(self.source, self.target)

    def measure(self, ready: tuple[Pool, float], case: Row) -> Row:
        """The history of a fit, and mean ‖Δ_R(v)‖ of its features and of random ones, on its prompts and on others."""
        pool, scale = ready
        dealt = pool.deal(case["shuffle"], self.number)
        learnt, others = (
            CausalMap(pool.lm, prompts, self.source, self.target)
            for prompts in (dealt.learn, dealt.test)
        )
        m, seed = case["num_factors"], case["shuffle"]
        found = fit(
            learnt, Exponential(m, scale, max_steps=self.sweeps, tol=0.0), seed=seed, progress=False
        )
        V, random = (
            found.features.V,
            random_rows(m, pool.lm.width, torch.Generator().manual_seed(seed)),
        )
        if len(found.history) < self.sweeps:
            raise MelboError(
                f"m = {m}, shuffle {seed}: the fit {found.status.value} after {len(found.history)} of {self.sweeps} sweeps"
            )

        def effects(cmap: CausalMap) -> list[float]:
            return [
                cmap.value(scale * rows.to(cmap.device, cmap.dtype)).norm(dim=-1).mean().item()
                for rows in (V, random)
            ]

        about = {
            "effects": effects(learnt),
            "effects_others": effects(others),
            "cos": spread(V).mean,
            "seconds": found.stats["seconds"],
        }
        return {
            "scale": scale,
            "explained": [record["explained"] for record in found.history],
            **about,
        }

    def table(self, rows: Sequence[Row]) -> str:
        """A line for each number of features: medians over shuffles of what is explained, since single sweeps jump; else mean ± standard error.

        ‖Δ‖ is the root mean square of the directions of the last sweep: these are orthonormal, so that K is (e − 1)·1 (`melbo.transcoder.kernel`).
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
        lines = []
        for m in self.factors:
            if own := [row for row in rows if row["num_factors"] == m]:
                last = [row["explained"][-1] for row in own]
                half = [
                    row["explained"][self.sweeps // 2 - 1] / row["explained"][-1] for row in own
                ]
                ratios = [
                    [row[k][0] / row[k][1] for row in own] for k in ("effects", "effects_others")
                ]
                values = [*ratios, *([row[k] for row in own] for k in ("cos", "seconds"))]
                of_one = math.sqrt((math.e - 1) * median(last) / m)
                lines.append(
                    [
                        str(m),
                        *(f"{x:.3g}" for x in (median(last), of_one, median(half))),
                        *map(cell, values),
                    ]
                )
        return markdown(head, lines)

    def picture(self, rows: Sequence[Row]) -> bytes:
        """What is explained after every sweep: of each shuffle, thin, and their median."""
        canvas, axes = blank()
        for i, m in enumerate(self.factors):
            curves = [row["explained"] for row in rows if row["num_factors"] == m]
            x, colour = range(1, self.sweeps + 1), f"C{i}"
            for curve in curves:
                axes.plot(x, curve, lw=0.7, alpha=0.6, color=colour)
            if curves:
                axes.plot(
                    x,
                    [median(at) for at in zip(*curves, strict=True)],
                    marker="o",
                    ms=3,
                    lw=1.6,
                    color=colour,
                    label=f"m = {m}",
                )
        axes.set(
            xlabel="sweeps",
            ylabel="explained, squared units of Δ",
            yscale="log",
            xticks=range(1, self.sweeps + 1),
        )
        return png(canvas)
