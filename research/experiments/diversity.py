"""Diversity: different coherent replies of features, beside as many samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import ClassVar

from melbo.discovery.recipes import is_control
from melbo.evaluation.plot import blank, png
from melbo.evaluation.scores import THRESHOLDS, Thresholds, coherent, distinct
from melbo.evaluation.tables import cell, markdown
from melbo.features.generate import Completion
from melbo.models.language_model import LanguageModel
from melbo.models.text.prompts import Prompts, read_texts
from melbo.records import Row
from research.experiments.base import typed
from research.experiments.pool import Pool
from research.experiments.replies import Replying


@dataclass(frozen=True)
class DiversityRow:
    """A row as table and picture read it.

    Attributes:
        shuffle: Number of the shuffle.
        recipe: One of `melbo.discovery.recipes.RECIPES`, or ``"temperature"``.
        curve: Points by strength or temperature ``at``: ``coherent``, the share of coherent
            replies, and ``distinct``, the number of different ones among them.
    """

    shuffle: int
    recipe: str
    curve: Sequence[dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Diversity(Replying):
    """Recipes at several strengths, and sampling at several temperatures, × shuffles.

    Each gives m replies to a prompt. A reply is coherent if the unsteered model finds it likely
    enough and it does not repeat itself; `melbo.evaluation.scores.distinct` counts the different
    ones.

    Attributes:
        thresholds: Limits beyond which a reply is broken; no setting.
    """

    question: ClassVar[str] = "How differently can it speak?"
    thresholds: ClassVar[Thresholds] = THRESHOLDS

    def prepare(self) -> tuple[Pool, float]:
        """The pool, and R."""
        pool = self.pool(read_texts(self.prompts_file), self.number)
        return pool, pool.scale(self.source, self.target)

    def measure(self, ready: tuple[Pool, float], case: Row) -> Row:
        """Share of coherent test replies, and number of different ones, at every setting."""
        pool, scale = ready
        dealt = pool.deal(case["shuffle"], self.number)
        tried, cost = self.tried(pool, dealt, scale, case)
        curve = []
        for at in self.settings_of(case["recipe"]):
            table = self.said(pool.lm, dealt.test, tried(at))
            curve.append({"at": at, **self._measured(pool.lm, dealt.test, table)})
        return {"scale": scale, "curve": curve, **cost}

    def _measured(
        self, lm: LanguageModel, prompts: Prompts, table: Sequence[Sequence[Completion]]
    ) -> dict[str, float]:
        every = [c for of in table for c in of]
        fine = iter(coherent(lm, [prompts], every, self.thresholds))
        texts = [[c.text for c in of if next(fine)] for of in table]
        shares = [len(some) / len(of) for some, of in zip(texts, table, strict=True)]
        return {"coherent": mean(shares), "distinct": mean(map(distinct, texts))}

    def table(self, rows: Sequence[Row]) -> str:
        """Mean ± standard error over shuffles, a line for each recipe and setting."""
        own = typed(DiversityRow, rows)
        lines = [
            [recipe, f"{at:g}", *(cell([p[k] for p in points]) for k in ("coherent", "distinct"))]
            for recipe in self.every
            for at in self.settings_of(recipe)
            if (points := _points(own, recipe, at))
        ]
        head = ["", "strength × R, or temperature", "coherent", "different among them"]
        note = f"{self.num_factors} replies to each of {self.test} test prompts."
        return markdown(head, lines) + f"\n{note}\n"

    def picture(self, rows: Sequence[Row]) -> bytes:
        """Different coherent replies by the share of coherent ones: up and right is better."""
        own = typed(DiversityRow, rows)
        canvas, axes = blank()
        for recipe in self.every:
            every = [_points(own, recipe, at) for at in self.settings_of(recipe)]
            known = [points for points in every if points]
            x, y = (
                [mean(p[k] for p in points) for points in known] for k in ("coherent", "distinct")
            )
            style = ":" if is_control(recipe) else "-"
            axes.plot(x, y, marker="o", ms=3, lw=1.4, label=recipe, ls=style)
            for points, a, b in zip(known, x, y, strict=True):
                axes.annotate(
                    f"{points[0]['at']:g}",
                    (a, b),
                    textcoords="offset points",
                    xytext=(3, 3),
                    fontsize=6,
                    color="grey",
                )
        y_label = f"different coherent replies of {self.num_factors}"
        axes.set(xlabel="share of coherent replies", ylabel=y_label)
        return png(canvas)


def _points(rows: Sequence[DiversityRow], recipe: str, at: float) -> list[dict[str, float]]:
    curves = [row.curve for row in rows if row.recipe == recipe]
    return [point for curve in curves for point in curve if point["at"] == at]
