"""How many prompts does it take? Held-out contrast of the best feature against the number of prompts that features are learnt from."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import ClassVar

from melbo.discovery.recipes import RECIPES, FeatureSearch
from melbo.evaluation.plot import lines
from melbo.evaluation.tables import cell, markdown
from melbo.maps.residual import CausalMap
from melbo.records import Row
from research.experiments.contest import Contest, Contested


@dataclass(frozen=True, kw_only=True)
class SampleComplexity(Contested):
    """Methods × numbers of prompts × shuffles (METHOD §11, figure 1 of the published method).

    Every shuffle deals prompts to learn from, to validate and to test: the vector with the highest contrast on validation prompts is reported on test
    prompts. Ways that give no sign are tried with both. R is calibrated once, so that all are pushed alike.

    Attributes:
        ways: Some of `melbo.ways.WAYS`.
        numbers: How many prompts are learnt from.
        source: Layer that is perturbed.
        target: Layer that is read.
    """

    question: ClassVar[str] = "How many prompts does it take?"
    varied: ClassVar[tuple[str, ...]] = ("numbers", "recipes", "shuffles")
    recipes: tuple[str, ...]
    numbers: tuple[int, ...]
    source: int
    target: int

    @property
    def cases(self) -> list[Row]:
        """Shuffle after shuffle."""
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
        """Contrast of the best on validation prompts, on test prompts; of the unsteered model too."""
        contest, scale = ready
        dealt = contest.deal(case["shuffle"], case["number"])
        search = FeatureSearch(CausalMap(contest.lm, dealt.learn, self.source, self.target), scale)
        features, cost = search.candidates(case["recipe"], self.num_factors, case["shuffle"])
        return {"scale": scale, **contest.best(dealt, features), **cost}

    def table(self, rows: Sequence[Row]) -> str:
        """Mean ± standard error over shuffles: the held-out contrast, ways by numbers of prompts; its differences; what a fit takes.

        Differences are taken within shuffles, where the test prompts are the same. Where numbers are averaged, a shuffle that lacks one is left out.
        """
        few, many = min(self.numbers), max(self.numbers)
        tests = {(row["recipe"], row["number"], row["shuffle"]): row["test"] for row in rows}

        def over_all(recipe: str) -> dict[int, float]:
            found = {
                s: [tests[recipe, n, s] for n in self.numbers if (recipe, n, s) in tests]
                for s in range(self.shuffles)
            }
            return {s: mean(of) for s, of in found.items() if len(of) == len(self.numbers)}

        whole = {recipe: over_all(recipe) for recipe in self.recipes}
        first = whole[self.recipes[0]]
        lines = [
            [str(n), *(cell(_tests(rows, recipe, n)) for recipe in self.recipes)]
            for n in self.numbers
        ]
        if few < many:
            lines.append(["all", *(cell(list(whole[recipe].values())) for recipe in self.recipes)])
            # what does not learn is the same at every number
            gains = [
                [
                    tests[recipe, many, s] - tests[recipe, few, s]
                    for s in whole[recipe]
                    if RECIPES[recipe].method
                ]
                for recipe in self.recipes
            ]
            lines.append([f"{many} less {few}", *map(cell, gains)])
        leads = [
            [first[s] - of for s, of in whole[recipe].items() if s in first]
            for recipe in self.recipes[1:]
        ]
        lines.append([f"{self.ways[0]} less it, all", "–", *map(cell, leads)])
        for n in sorted({few, many}):
            costs = [
                [row["seconds"] for row in rows if (row["recipe"], row["number"]) == (recipe, n)]
                for recipe in self.recipes
            ]
            lines.append([f"seconds, {n}", *map(cell, costs)])
        return (
            markdown(["prompts", *self.recipes], lines)
            + f"\nUnsteered: {mean(row['unsteered'] for row in rows):.2f}.\n"
        )

    def picture(self, rows: Sequence[Row]) -> bytes:
        """The same, drawn."""
        y = f"held-out logit({self.contrast[0]}) − logit({self.contrast[1]}), best of {self.num_factors}"
        unsteered = mean(row["unsteered"] for row in rows)
        return lines(
            self.recipes,
            self.numbers,
            lambda recipe, at: _tests(rows, recipe, at),
            unsteered,
            "prompts learnt from",
            y,
            log=True,
        )


def _tests(rows: Sequence[Row], recipe: str, number: int) -> list[float]:
    return [row["test"] for row in rows if (row["recipe"], row["number"]) == (recipe, number)]
