"""Do features solve what samples do not? Problems solved by one of k replies, steered or drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from melbo.discovery.recipes import is_control
from melbo.evaluation.plot import lines
from melbo.evaluation.scorers import Scorer, answers
from melbo.evaluation.tables import cell, markdown
from melbo.models.text.prompt_files import ANSWERS
from melbo.models.text.prompts import Prompts, read_pairs
from melbo.records import Row
from research.experiments.base import typed
from research.experiments.pool import Pool
from research.experiments.replies import Replying
from research.organisms.metrics import random_recall


@dataclass(frozen=True)
class PassAtKRow:
    """A row as table and picture read it.

    Attributes:
        shuffle: Number of the shuffle.
        recipe: One of `melbo.discovery.recipes.RECIPES`, or ``"temperature"``.
        at: Strength or temperature that was best on validation problems.
        solved: Number of replies that solve each test problem.
    """

    shuffle: int
    recipe: str
    at: float
    solved: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class PassAtK(Replying):
    """Recipes, and sampling, × shuffles: pass@k on test problems.

    Each gives m replies to a problem, one of each feature or m drawn ones. pass@k is the expected
    share of problems that k of them, drawn without replacement, solve (Chen et al. 2021). The
    strength or temperature is the one with the highest pass@m on validation problems, whatever k.

    Attributes:
        validation: Number of validation prompts.
    """

    question: ClassVar[str] = "Do features solve what samples do not?"
    validation: int

    def prepare(self) -> tuple[Pool, Scorer, float]:
        """The pool, the scorer of answers, and R."""
        texts, expected = read_pairs(self.prompts_file, ANSWERS)
        pool = self.pool(texts, self.number, self.validation)
        solves = answers(dict(zip(texts, expected, strict=True)))
        return pool, solves, pool.scale(self.source, self.target)

    def measure(self, ready: tuple[Pool, Scorer, float], case: Row) -> Row:
        """Number of replies, out of m, that solve each test problem."""
        pool, score, scale = ready
        dealt, m = pool.deal(case["shuffle"], self.number), self.num_factors
        tried, cost = self.tried(pool, dealt, scale, case)

        def solved(prompts: Prompts, at: float) -> list[int]:
            return [
                sum(score(c.prompt_text, c.text) > 0 for c in of)
                for of in self.said(pool.lm, prompts, tried(at))
            ]

        settings = self.settings_of(case["recipe"])
        # pass@m; where that is the same, pass@1
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
        """pass@k on test problems: mean ± standard error over shuffles."""
        own, recipes = typed(PassAtKRow, rows), self.every
        lines = [
            [str(k), *(cell(self._passes(own, recipe, k)) for recipe in recipes)]
            for k in self._numbers
        ]
        chosen = "; ".join(
            f"{recipe} {', '.join(str(row.at) for row in own if row.recipe == recipe)}"
            for recipe in recipes
        )
        best = f"pass@{self.num_factors} was best on validation problems"
        note = f"Strength (× R) or temperature whose {best}, by shuffle: {chosen}."
        return markdown(["k", *recipes], lines) + f"\n{note}\n"

    def picture(self, rows: Sequence[Row]) -> bytes:
        """The same, drawn."""
        own = typed(PassAtKRow, rows)
        return lines(
            self.every,
            self._numbers,
            lambda recipe, k: self._passes(own, recipe, k),
            dotted=list(filter(is_control, self.every)),
            x="k",
            y="pass@k, test problems",
            log=True,
        )

    @property
    def _numbers(self) -> list[int]:
        powers = [k for k in (2**i for i in range(10)) if k < self.num_factors]
        return [*powers, self.num_factors]

    def _passes(self, rows: Sequence[PassAtKRow], recipe: str, k: int) -> list[float]:
        own = [row for row in rows if row.recipe == recipe]
        return [random_recall(row.solved, self.num_factors, k) for row in own]
