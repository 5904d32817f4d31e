"""Multiplicity: how many features do the same, how alike they are, and what their mean does."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import ClassVar

import torch

from melbo.discovery.recipes import FeatureSearch
from melbo.evaluation.plot import blank, png
from melbo.evaluation.tables import cell, markdown
from melbo.features.ablate import ablate
from melbo.features.directions import FeatureSet
from melbo.maps.residual import CausalMap
from melbo.maths.geometry import spread
from melbo.records import Row
from research.experiments.base import Layer, typed
from research.experiments.contest import Contest, Contested
from research.experiments.pool import Deal

# features that are ablated one by one, at most
_SINGLES = 8
_AVERAGES = ("mean", "svd")
_DONE = ("add v", "ablate v", "ablate u")
_WHO = ("mean single", "best single", "mean vector", "SVD vector")


@dataclass(frozen=True)
class MultiplicityRow:
    """A row as table and picture read it.

    Contrasts of four kinds are listed in one order: mean over single features, best feature, mean
    vector, main direction. They are None where no feature reaches the threshold.

    Attributes:
        shuffle: Number of the shuffle.
        hits: Number of features that reach the threshold on validation prompts.
        random_hits: The same of random directions.
        unsteered: Contrast of the unsteered model on test prompts.
        tested: Contrast on test prompts of every feature that reaches the threshold.
        add_v: Contrasts with the directions added.
        ablate_v: Contrasts with the directions ablated.
        ablate_u: Contrasts with the directions of the responses ablated.
        condition: Condition number of the directions; None for fewer than two.
        cos: Mean |cos| between them; None for fewer than two.
    """

    shuffle: int
    hits: int
    random_hits: int
    unsteered: float
    tested: Sequence[float]
    add_v: Sequence[float] | None = None
    ablate_v: Sequence[float] | None = None
    ablate_u: Sequence[float] | None = None
    condition: float | None = None
    cos: float | None = None

    def contrasts(self, done: str) -> Sequence[float]:
        """Contrasts of the four kinds, of a row with hits.

        Args:
            done: ``"add v"``, ``"ablate v"`` or ``"ablate u"``.
        """
        by_kind = {"add v": self.add_v, "ablate v": self.ablate_v, "ablate u": self.ablate_u}
        contrasts = by_kind[done]
        assert contrasts is not None
        return contrasts


@dataclass(frozen=True, kw_only=True)
class Multiplicity(Contested):
    """Features whose contrast on validation prompts reaches a threshold (docs/method.md §10).

    Attributes:
        threshold: Contrast that a feature has to reach.
        recipe: One of `melbo.discovery.recipes.RECIPES`.
        number: Number of prompts that are learnt from.
        source: Layer that is perturbed.
        target: Layer that is read.
    """

    question: ClassVar[str] = "How many features do the same, and are they one?"
    threshold: float
    recipe: str
    number: int
    source: Layer
    target: Layer

    @property
    def cases(self) -> list[Row]:
        """One case a shuffle."""
        return [self.case(s) for s in range(self.shuffles)]

    def prepare(self) -> tuple[Contest, float]:
        """The contest, and R."""
        contest = self.contest(self.number)
        return contest, contest.scale(self.source, self.target)

    def measure(self, ready: tuple[Contest, float], case: Row) -> Row:
        """Counts, likeness, and contrasts of adding and ablating the features that count."""
        contest, scale = ready
        dealt = contest.deal(case["shuffle"], self.number)
        cmap = CausalMap(contest.lm, dealt.learn, self.source, self.target)
        search = FeatureSearch(cmap, scale)
        features, _ = search.candidates(self.recipe, self.num_factors, case["shuffle"])
        _, validated = contest.contrasts(dealt.validation, features)
        over = [i for i, c in enumerate(validated) if c >= self.threshold]
        hits = sorted(over, key=lambda i: -validated[i])
        unsteered, tested = contest.contrasts(dealt.test, features)
        controls, _ = search.candidates("random", self.num_factors, case["shuffle"])
        _, by_chance = contest.contrasts(dealt.validation, controls)
        row: Row = {
            "scale": scale,
            "hits": len(hits),
            "random_hits": sum(c >= self.threshold for c in by_chance),
            "unsteered": unsteered,
            "tested": [tested[i] for i in hits],
        }
        if hits:
            effects = self._effects(cmap, scale, features[hits])
            row |= self._together(contest, dealt, effects, row["tested"])
        return row

    def _effects(self, cmap: CausalMap, scale: float, chosen: FeatureSet) -> FeatureSet:
        """The features with the directions of their responses.

        U as it was learnt lies at the target layer too, but differs from the response at R.
        """
        D = cmap.value(scale * chosen.V.to(cmap.device, cmap.dtype)).float().cpu()
        U = torch.nn.functional.normalize(D, dim=-1)
        return FeatureSet(chosen.V, U, chosen.alpha, scale, self.source, self.target, chosen.meta)

    def _together(
        self, contest: Contest, dealt: Deal, effects: FeatureSet, tested: Sequence[float]
    ) -> Row:
        """Contrasts of the features one by one and averaged, added and ablated; their likeness."""

        def ablated(direction: torch.Tensor) -> float:
            with ablate(contest.lm, direction):
                return contest.plain(dealt.test)

        averages = [effects.averaged(how) for how in _AVERAGES]
        added = [contest.contrasts(dealt.test, one)[1][0] for one in averages]
        row: Row = {"add v": [mean(tested), tested[0], *added]}
        for done, name in (("ablate v", "V"), ("ablate u", "U")):
            singles = [ablated(v) for v in getattr(effects, name)[:_SINGLES]]
            both = [ablated(getattr(one, name)) for one in averages]
            row[done] = [mean(singles), singles[0], *both]
        likeness, alone = spread(effects.V), len(tested) == 1
        return {
            **row,
            "condition": None if alone else likeness.condition_number,
            "cos": None if alone else likeness.mean,
        }

    def table(self, rows: Sequence[Row]) -> str:
        """Held-out contrasts, mean ± standard error over shuffles, and likeness of the hits."""
        own = typed(MultiplicityRow, rows)
        some = [row for row in own if row.hits]
        lines = [
            [done, *(cell([row.contrasts(done)[i] for row in some]) for i in range(len(_WHO)))]
            for done in _DONE
        ]
        again = sum(test >= self.threshold for row in own for test in row.tested)
        hits, chance = (cell([getattr(row, k) for row in own]) for k in ("hits", "random_hits"))
        unsteered, cos, condition = (
            cell([getattr(row, k) for row in own]) for k in ("unsteered", "cos", "condition")
        )
        return markdown(["", *_WHO], lines) + (
            f"\n{hits} of {self.num_factors} features reach {self.threshold:g}, "
            f"of random ones {chance}; "
            f"{again} of {sum(row.hits for row in own)} on test prompts too; "
            f"unsteered {unsteered}; mean |cos| {cos}; condition number {condition}. "
            f"{_SINGLES} at most are ablated singly.\n"
        )

    def picture(self, rows: Sequence[Row]) -> bytes:
        """Held-out contrasts of all hits, beside those of their mean and main direction."""
        canvas, axes = blank(3.6)
        for row in typed(MultiplicityRow, rows):
            x, named = row.shuffle, row.shuffle == 0
            label = "single" if named else None
            axes.plot(
                [x] * row.hits, row.tested, "o", ms=3, alpha=0.4, color="tab:blue", label=label
            )
            if row.hits:
                _, _, mean_vector, svd_vector = row.contrasts("add v")
                for step, contrast, marker, colour, name in (
                    (0.15, mean_vector, "s", "tab:orange", "mean vector"),
                    (0.25, svd_vector, "^", "tab:green", "SVD vector"),
                ):
                    label = name if named else None
                    axes.plot([x + step], [contrast], marker, color=colour, label=label)
            axes.plot([x - 0.2, x + 0.3], [row.unsteered] * 2, color="grey", lw=0.8)
        a, b = self.contrast
        y = f"held-out logit({a}) − logit({b})"
        axes.set(xlabel="shuffle", ylabel=y, xticks=range(self.shuffles))
        return png(canvas)
