"""Do features solve what samples do not? Problems solved by one of k replies, steered or drawn at a temperature."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from melbo.evaluation.judges import Score, answers
from melbo.evaluation.plot import lines
from melbo.evaluation.tables import cell, markdown
from melbo.models.prompts import Prompts, read_pairs
from melbo.records import Row
from research.experiments.pool import Pool
from research.experiments.replies import Replying
from research.organisms.metrics import random_recall


@dataclass(frozen=True, kw_only=True)
class PassAtK(Replying):
    """Ways, and sampling, × shuffles: pass@k on test problems, at the strength or temperature that is best on validation problems.

    Every source gives m replies to a problem, one of each feature or m drawn ones; pass@k is the expected share of problems that k of them, drawn
    without replacement, solve (Chen et al. 2021). Best is the highest pass@m, whatever k.

    Attributes:
        validation: Number of validation prompts.
    """

    question: ClassVar[str] = "Do features solve what samples do not?"
    validation: int

    def prepare(self) -> tuple[Pool, Score, float]:
        """The pool, what solves a problem, and R."""
        texts, expected = read_pairs(self.prompts)
        pool = self.pool(texts, self.number, self.validation)
        return (
            pool,
            answers(dict(zip(texts, expected, strict=True))),
            pool.scale(self.source, self.target),
        )

    def measure(self, ready: tuple[Pool, Score, float], case: Row) -> Row:
        """How many of m replies solve each test problem."""
        pool, score, scale = ready
        dealt, m = pool.deal(case["shuffle"], self.number), self.num_factors
        tried, cost = self.tried(pool, dealt, scale, case)

        def solved(prompts: Prompts, at: float) -> list[int]:
            return [
                sum(score(c.prompt_text, c.text) > 0 for c in of)
                for of in self.said(pool.lm, prompts, tried(at))
            ]

        settings = self.settings_of(case["recipe"])
        # of all m; where that is the same, of one
        worth = {
            at: [random_recall(counts, m, k) for k in (m, 1)]
            for at in settings
            for counts in [solved(dealt.validation, at)]
        }
        best = max(settings, key=worth.__getitem__)
        return {
            "scale": scale,
            "validation": [[at, *worth[at]] for at in settings],
            "at": best,
            "solved": solved(dealt.test, best),
            **cost,
        }

    def table(self, rows: Sequence[Row]) -> str:
        """Mean ± standard error over shuffles of pass@k on test problems."""
        recipes = self.every
        lines = [
            [str(k), *(cell(self._passes(rows, recipe, k)) for recipe in recipes)]
            for k in self._numbers
        ]
        chosen = "; ".join(
            f"{recipe} {', '.join(str(row['at']) for row in rows if row['recipe'] == recipe)}"
            for recipe in recipes
        )
        best = f"pass@{self.num_factors} was best on validation problems"
        return (
            markdown(["k", *recipes], lines)
            + f"\nStrength (× R) or temperature whose {best}, by shuffle: {chosen}.\n"
        )

    def picture(self, rows: Sequence[Row]) -> bytes:
        """The same, drawn."""
        return lines(
            self.every,
            self._numbers,
            lambda recipe, k: self._passes(rows, recipe, k),
            None,
            "k",
            "pass@k, test problems",
            log=True,
        )

    @property
    def _numbers(self) -> list[int]:
        return [k for k in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if k < self.num_factors] + [
            self.num_factors
        ]

    def _passes(self, rows: Sequence[Row], recipe: str, k: int) -> list[float]:
        return [
            random_recall(row["solved"], self.num_factors, k)
            for row in rows
            if row["recipe"] == recipe
        ]
