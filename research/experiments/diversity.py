"""How differently can it speak? How many different coherent replies features bring out, and as many samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import ClassVar

from melbo.evaluation.plot import blank, dash, png
from melbo.evaluation.scores import coherent, distinct
from melbo.evaluation.tables import cell, markdown
from melbo.features.generate import Completion
from melbo.models.language_model import LanguageModel
from melbo.models.prompts import Prompts, read_texts
from melbo.records import Row
from research.experiments.pool import Pool
from research.experiments.replies import Replying


@dataclass(frozen=True, kw_only=True)
class Diversity(Replying):
    """Ways at several strengths, and sampling at several temperatures, × shuffles: coherent replies, and how many different ones among them.

    Every source gives m replies to a prompt. One is coherent if the unsteered model finds it likely enough and it does not repeat itself
    (`melbo.score`); how many different ones: `melbo.score.distinct`.
    """

    question: ClassVar[str] = "How differently can it speak?"

    def prepare(self) -> tuple[Pool, float]:
        """The pool, and R."""
        pool = self.pool(read_texts(Path(self.prompts)), self.number)
        return pool, pool.scale(self.source, self.target)

    def measure(self, ready: tuple[Pool, float], case: Row) -> Row:
        """At every strength or temperature, on test prompts: share of coherent replies, different ones among them."""
        pool, scale = ready
        dealt = pool.deal(case["shuffle"], self.number)
        tried, cost = self.tried(pool, dealt, scale, case)
        said = {
            at: self.said(pool.lm, dealt.test, tried(at)) for at in self.settings_of(case["recipe"])
        }
        return {
            "scale": scale,
            "curve": [
                {"at": at, **_measured(pool.lm, dealt.test, table)} for at, table in said.items()
            ],
            **cost,
        }

    def table(self, rows: Sequence[Row]) -> str:
        """Mean ± standard error over shuffles."""
        lines = [
            [recipe, f"{at:g}", *(cell([p[k] for p in points]) for k in ("coherent", "distinct"))]
            for recipe in self.every
            for at in self.settings_of(recipe)
            if (points := _points(rows, recipe, at))
        ]
        head = ["", "strength × R, or temperature", "coherent", "different among them"]
        return (
            markdown(head, lines)
            + f"\n{self.num_factors} replies to each of {self.test} test prompts.\n"
        )

    def picture(self, rows: Sequence[Row]) -> bytes:
        """Different coherent replies against the share of coherent ones: up and to the right is better."""
        canvas, axes = blank()
        for recipe in self.every:
            every = [_points(rows, recipe, at) for at in self.settings_of(recipe)]
            known = [points for points in every if points]
            x, y = (
                [mean(p[k] for p in points) for points in known] for k in ("coherent", "distinct")
            )
            axes.plot(x, y, marker="o", ms=3, lw=1.4, label=recipe, ls=dash(recipe))
            for points, a, b in zip(known, x, y, strict=True):
                axes.annotate(
                    f"{points[0]['at']:g}",
                    (a, b),
                    textcoords="offset points",
                    xytext=(3, 3),
                    fontsize=6,
                    color="grey",
                )
        axes.set(
            xlabel="share of coherent replies",
            ylabel=f"different coherent replies of {self.num_factors}",
        )
        return png(canvas)


def _measured(
    lm: LanguageModel, prompts: Prompts, table: Sequence[Sequence[Completion]]
) -> dict[str, float]:
    fine = iter(coherent(lm, [prompts], [c for of in table for c in of]))
    texts = [[c.text for c in of if next(fine)] for of in table]
    return {
        "coherent": mean(len(some) / len(of) for some, of in zip(texts, table, strict=True)),
        "distinct": mean(distinct(some) for some in texts),
    }


def _points(rows: Sequence[Row], recipe: str, at: float) -> list[dict[str, float]]:
    return [
        point
        for row in rows
        if row["recipe"] == recipe
        for point in row["curve"]
        if point["at"] == at
    ]
