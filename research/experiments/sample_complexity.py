"""Sample complexity: held-out contrast by the number of prompts to learn from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import ClassVar

from melbo.discovery.recipes import FeatureSearch, is_control
from melbo.evaluation.plot import lines
from melbo.evaluation.tables import cell, markdown
from melbo.maps.residual import CausalMap
from melbo.records import Row
from research.experiments.base import Layer, typed
from research.experiments.contest import Contest, Contested

_Tests = Mapping[tuple[str, int, int], float]


@dataclass(frozen=True)
class SampleComplexityRow:
    """A row as table and picture read it.

    Attributes:
        shuffle: Number of the shuffle.
        number: Number of prompts that were learnt from.
        recipe: One of `melbo.discovery.recipes.RECIPES`.
        test: Contrast of the best feature on test prompts.
        unsteered: Contrast of the unsteered model on the same prompts.
        seconds: Duration of the fit; None where it was not timed as the others.
    """

    shuffle: int
    number: int
    recipe: str
    test: float
    unsteered: float
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class SampleComplexity(Contested):
    """Recipes × numbers of prompts × shuffles (docs/method.md §10, the published figure 1).

    Every shuffle deals prompts to learn from, to validate and to test: the vector with the highest
    contrast on validation prompts is reported on test prompts. Recipes that give no sign are tried
    with both. R is calibrated once, so that all are pushed alike.

    Attributes:
        recipes: Some of `melbo.discovery.recipes.RECIPES`.
        numbers: Numbers of prompts to learn from.
        source: Layer that is perturbed.
        target: Layer that is read.
    """

    question: ClassVar[str] = "How many prompts does it take?"
    varied: ClassVar[tuple[str, ...]] = ("numbers", "recipes", "shuffles")
    recipes: tuple[str, ...]
    numbers: tuple[int, ...]
    source: Layer
    target: Layer

    @property
    def cases(self) -> list[Row]:
        """The cases, shuffle after shuffle."""
        return [
            self.case(s, number=n, recipe=recipe)
            for s in range(self.shuffles)
            for n in self.numbers
            for recipe in self.recipes
        ]

    def prepare(self) -> tuple[Contest, float]:
        """The contest, and R."""
        contest = self.contest(max(self.numbers))
        return contest, contest.scale(self.source, self.target)

    def measure(self, ready: tuple[Contest, float], case: Row) -> Row:
        """Contrast of the best feature on validation prompts and on test prompts."""
        contest, scale = ready
        dealt = contest.deal(case["shuffle"], case["number"])
        search = FeatureSearch(CausalMap(contest.lm, dealt.learn, self.source, self.target), scale)
        features, cost = search.candidates(case["recipe"], self.num_factors, case["shuffle"])
        return {"scale": scale, **contest.best(dealt, features), **cost}

    def table(self, rows: Sequence[Row]) -> str:
        """Held-out contrast, recipes by numbers of prompts: mean ± standard error over shuffles.

        Below it are its differences, taken within shuffles, where the test prompts are the same,
        and the seconds of a fit. Where numbers are averaged, a shuffle that lacks one is left out.
        """
        own = typed(SampleComplexityRow, rows)
        few, many = min(self.numbers), max(self.numbers)
        tests = {(row.recipe, row.number, row.shuffle): row.test for row in own}
        whole = {recipe: self._over_all(tests, recipe) for recipe in self.recipes}
        lines = [
            [str(n), *(cell(_tests(own, recipe, n)) for recipe in self.recipes)]
            for n in self.numbers
        ]
        if few < many:
            lines.append(["all", *(cell(list(whole[recipe].values())) for recipe in self.recipes)])
            gains = [
                [tests[recipe, many, s] - tests[recipe, few, s] for s in whole[recipe]]
                # a control does not learn, and is the same at every number
                if not is_control(recipe)
                else []
                for recipe in self.recipes
            ]
            lines.append([f"{many} less {few}", *map(cell, gains)])
        first, *others = self.recipes
        leads = [
            [whole[first][s] - of for s, of in whole[recipe].items() if s in whole[first]]
            for recipe in others
        ]
        lines.append([f"{first} less it, all", "–", *map(cell, leads)])
        for n in sorted({few, many}):
            costs = [
                [row.seconds for row in own if (row.recipe, row.number) == (recipe, n)]
                for recipe in self.recipes
            ]
            lines.append([f"seconds, {n}", *map(cell, costs)])
        unsteered = mean(row.unsteered for row in own)
        return markdown(["prompts", *self.recipes], lines) + f"\nUnsteered: {unsteered:.2f}.\n"

    def _over_all(self, tests: _Tests, recipe: str) -> dict[int, float]:
        """Mean over all numbers of prompts, of each shuffle that has them all."""
        by_shuffle = {
            s: [tests[recipe, n, s] for n in self.numbers if (recipe, n, s) in tests]
            for s in range(self.shuffles)
        }
        return {s: mean(of) for s, of in by_shuffle.items() if len(of) == len(self.numbers)}

    def picture(self, rows: Sequence[Row]) -> bytes:
        """The contrasts, drawn."""
        own, (a, b) = typed(SampleComplexityRow, rows), self.contrast
        return lines(
            self.recipes,
            self.numbers,
            lambda recipe, at: _tests(own, recipe, at),
            dotted=list(filter(is_control, self.recipes)),
            level=mean(row.unsteered for row in own),
            x="prompts learnt from",
            y=f"held-out logit({a}) − logit({b}), best of {self.num_factors}",
            log=True,
        )


def _tests(rows: Sequence[SampleComplexityRow], recipe: str, number: int) -> list[float]:
    return [row.test for row in rows if (row.recipe, row.number) == (recipe, number)]
