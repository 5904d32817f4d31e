"""Where should one push? Held-out contrast by source layer, the target a fixed distance later."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import ClassVar

from melbo.discovery.recipes import FeatureSearch, is_control
from melbo.errors import MelboError
from melbo.evaluation.plot import lines
from melbo.evaluation.tables import cell, markdown
from melbo.maps.residual import CausalMap
from melbo.records import Row
from research.experiments.base import Layer, typed
from research.experiments.contest import Contest, Contested


@dataclass(frozen=True)
class DepthRow:
    """A row as table and picture read it.

    Attributes:
        shuffle: Number of the shuffle.
        source: Layer that was perturbed.
        recipe: One of `melbo.discovery.recipes.RECIPES`.
        scale: R of this source.
        source_norm: Mean norm of the stream there.
        test: Contrast of the best feature on test prompts.
        unsteered: Contrast of the unsteered model on the same prompts.
    """

    shuffle: int
    source: int
    recipe: str
    scale: float
    source_norm: float
    test: float
    unsteered: float


@dataclass(frozen=True, kw_only=True)
class Depth(Contested):
    """Source layers × recipes × shuffles; R is calibrated anew for every source.

    Attributes:
        recipes: Some of `melbo.discovery.recipes.RECIPES`.
        sources: Layers that are perturbed.
        horizon: Number of layers from there to the one that is read.
        number: Number of prompts that are learnt from.
    """

    question: ClassVar[str] = "Where should one push?"
    varied: ClassVar[tuple[str, ...]] = ("sources", "recipes", "shuffles")
    recipes: tuple[str, ...]
    sources: tuple[Layer, ...]
    horizon: int
    number: int

    @property
    def cases(self) -> list[Row]:
        """The cases, shuffle after shuffle."""
        return [
            self.case(s, source=layer, recipe=recipe)
            for s in range(self.shuffles)
            for layer in self.sources
            for recipe in self.recipes
        ]

    def prepare(self) -> tuple[Contest, dict[int, float]]:
        """The contest, and R of every source.

        Raises:
            MelboError: A target lies beyond the last layer.
        """
        contest = self.contest(self.number)
        deepest = max(self.sources)
        if deepest + self.horizon > contest.lm.depth:
            raise MelboError(
                f"source {deepest} and horizon {self.horizon} reach past layer "
                f"{contest.lm.depth}: lower one of them"
            )
        sources: tuple[int, ...] = self.sources
        return contest, {s: contest.scale(s, s + self.horizon) for s in sources}

    def measure(self, ready: tuple[Contest, dict[int, float]], case: Row) -> Row:
        """Contrast of the best feature on validation prompts and on test prompts."""
        contest, scales = ready
        dealt, layer = contest.deal(case["shuffle"], self.number), case["source"]
        cmap = CausalMap(contest.lm, dealt.learn, layer, layer + self.horizon)
        search = FeatureSearch(cmap, scales[layer])
        features, cost = search.candidates(case["recipe"], self.num_factors, case["shuffle"])
        return {
            "scale": scales[layer],
            "source_norm": search.map.source_norm,
            **contest.best(dealt, features),
            **cost,
        }

    def table(self, rows: Sequence[Row]) -> str:
        """Held-out contrast, recipes by source layers: mean ± standard error over shuffles.

        The leads of the first recipe are taken within shuffles, whose test prompts are the same.
        """
        own = typed(DepthRow, rows)
        tests = {(row.recipe, row.source, row.shuffle): row.test for row in own}
        first, others = self.recipes[0], self.recipes[1:]

        def lead(recipe: str, at: int) -> list[float]:
            pairs = [
                (tests.get((first, at, s)), tests.get((recipe, at, s)))
                for s in range(self.shuffles)
            ]
            return [a - b for a, b in pairs if a is not None and b is not None]

        lines = [
            [
                str(at),
                cell([row.scale / row.source_norm for row in own if row.source == at]),
                *(cell(_tests(own, recipe, at)) for recipe in self.recipes),
                *(cell(lead(recipe, at)) for recipe in others),
            ]
            for at in self.sources
        ]
        leads = [f"{first} less {recipe}" for recipe in others]
        unsteered = mean(row.unsteered for row in own)
        head = ["source", "R / ‖h‖", *self.recipes, *leads]
        return markdown(head, lines) + f"\nUnsteered: {unsteered:.2f}.\n"

    def picture(self, rows: Sequence[Row]) -> bytes:
        """The same, drawn."""
        own, (a, b) = typed(DepthRow, rows), self.contrast
        return lines(
            self.recipes,
            self.sources,
            lambda recipe, at: _tests(own, recipe, at),
            dotted=list(filter(is_control, self.recipes)),
            level=mean(row.unsteered for row in own),
            x=f"source layer (target {self.horizon} later)",
            y=f"held-out logit({a}) − logit({b}), best of {self.num_factors}",
        )


def _tests(rows: Sequence[DepthRow], recipe: str, source: int) -> list[float]:
    return [row.test for row in rows if (row.recipe, row.source) == (recipe, source)]
