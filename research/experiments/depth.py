"""Where should one push? The best held-out contrast against the source layer, at a fixed distance to the target."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import ClassVar

from melbo.discovery.recipes import FeatureSearch
from melbo.errors import MelboError
from melbo.evaluation.plot import lines
from melbo.evaluation.tables import cell, markdown
from melbo.maps.residual import CausalMap
from melbo.records import Row
from research.experiments.contest import Contest, Contested


@dataclass(frozen=True, kw_only=True)
class Depth(Contested):
    """Source layers × ways × shuffles; R is calibrated anew for every source.

    Attributes:
        ways: Some of `melbo.ways.WAYS`.
        sources: Layers that are perturbed.
        horizon: Layers from there to the one that is read.
        number: How many prompts are learnt from.
    """

    question: ClassVar[str] = "Where should one push?"
    varied: ClassVar[tuple[str, ...]] = ("sources", "recipes", "shuffles")
    recipes: tuple[str, ...]
    sources: tuple[int, ...]
    horizon: int
    number: int

    @property
    def cases(self) -> list[Row]:
        """Shuffle after shuffle."""
        return [
            self.case(s, source=layer, recipe=recipe)
            for s in range(self.shuffles)
            for layer in self.sources
            for recipe in self.recipes
        ]

    def prepare(self) -> tuple[Contest, dict[int, float]]:
        """The contest, and R of every source."""
        contest = self.contest(self.number)
        if max(self.sources) + self.horizon > contest.lm.depth:
            raise MelboError(
                f"source {max(self.sources)} and horizon {self.horizon} reach past layer {contest.lm.depth}: lower one of them"
            )
        return contest, {
            layer: contest.scale(layer, layer + self.horizon) for layer in self.sources
        }

    def measure(self, ready: tuple[Contest, dict[int, float]], case: Row) -> Row:
        """Contrast of the best on validation prompts, on test prompts; of the unsteered model too."""
        contest, scales = ready
        dealt, layer = contest.deal(case["shuffle"], self.number), case["source"]
        search = FeatureSearch(
            CausalMap(contest.lm, dealt.learn, layer, layer + self.horizon), scales[layer]
        )
        features, cost = search.candidates(case["recipe"], self.num_factors, case["shuffle"])
        return {
            "scale": scales[layer],
            "source_norm": search.map.source_norm,
            **contest.best(dealt, features),
            **cost,
        }

    def table(self, rows: Sequence[Row]) -> str:
        """Mean ± standard error over shuffles of the held-out contrast, ways by source layers; how far the first leads, within shuffles."""
        tests = {(row["recipe"], row["source"], row["shuffle"]): row["test"] for row in rows}
        first, others = self.recipes[0], self.recipes[1:]

        def lead(recipe: str, at: int) -> list[float]:
            both = [
                [tests.get((name, at, s)) for name in (first, recipe)] for s in range(self.shuffles)
            ]
            return [a - b for a, b in both if a is not None and b is not None]

        relative = {
            layer: [row["scale"] / row["source_norm"] for row in rows if row["source"] == layer]
            for layer in self.sources
        }
        lines = [
            [
                str(at),
                cell(relative[at]),
                *(cell(_tests(rows, recipe, at)) for recipe in self.recipes),
                *(cell(lead(recipe, at)) for recipe in others),
            ]
            for at in self.sources
        ]
        head = [
            "source",
            "R / ‖h‖",
            *self.recipes,
            *(f"{first} less {recipe}" for recipe in others),
        ]
        return (
            markdown(head, lines) + f"\nUnsteered: {mean(row['unsteered'] for row in rows):.2f}.\n"
        )

    def picture(self, rows: Sequence[Row]) -> bytes:
        """The same, drawn."""
        y = f"held-out logit({self.contrast[0]}) − logit({self.contrast[1]}), best of {self.num_factors}"
        unsteered = mean(row["unsteered"] for row in rows)
        return lines(
            self.recipes,
            self.sources,
            lambda recipe, at: _tests(rows, recipe, at),
            unsteered,
            f"source layer (target {self.horizon} later)",
            y,
        )


def _tests(rows: Sequence[Row], recipe: str, source: int) -> list[float]:
    return [row["test"] for row in rows if (row["recipe"], row["source"]) == (recipe, source)]
