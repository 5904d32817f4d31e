"""How many features do the same, and are they one? Counts over a threshold, how alike they are, and what their mean does instead."""

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
from research.experiments.contest import Contest, Contested

_SINGLES = 8  # that are ablated one by one
_WHAT = ("add v", "ablate v", "ablate u")
_WHO = ("mean single", "best single", "mean vector", "SVD vector")


@dataclass(frozen=True, kw_only=True)
class Multiplicity(Contested):
    """Features whose contrast on validation prompts reaches a threshold, on test prompts (METHOD §11, multiplicity).

    Attributes:
        threshold: From which contrast on a feature counts.
        way: One of `melbo.ways.WAYS`.
        number: How many prompts are learnt from.
        source: Layer that is perturbed.
        target: Layer that is read.
    """

    question: ClassVar[str] = "How many features do the same, and are they one?"
    threshold: float
    recipe: str
    number: int
    source: int
    target: int

    @property
    def cases(self) -> list[Row]:
        """One a shuffle."""
        return [self.case(s) for s in range(self.shuffles)]

    def prepare(self) -> tuple[Contest, float]:
        """The contest, and R."""
        contest = self.contest(self.number)
        return contest, contest.scale(self.source, self.target)

    def measure(self, ready: tuple[Contest, float], case: Row) -> Row:
        """Counts, spread, and the contrasts of adding and ablating the best one, their mean, their main direction."""
        contest, scale = ready
        dealt = contest.deal(case["shuffle"], self.number)
        cmap = CausalMap(contest.lm, dealt.learn, self.source, self.target)
        features, _ = FeatureSearch(cmap, scale).candidates(
            self.recipe, self.num_factors, case["shuffle"]
        )
        _, validated = contest.contrasts(dealt.validation, features)
        hits = sorted(
            (i for i, c in enumerate(validated) if c >= self.threshold), key=lambda i: -validated[i]
        )
        unsteered, tested = contest.contrasts(dealt.test, features)
        controls, _ = FeatureSearch(cmap, scale).candidates(
            "random", self.num_factors, case["shuffle"]
        )
        by_chance = sum(
            c >= self.threshold for c in contest.contrasts(dealt.validation, controls)[1]
        )
        row: Row = {
            "scale": scale,
            "hits": len(hits),
            "random_hits": by_chance,
            "unsteered": unsteered,
            "tested": [tested[i] for i in hits],
        }
        if not hits:
            return row
        # U as learnt lies at the target layer; directions of the response to the hits are taken from the map
        chosen = features[hits]
        D = cmap.value(scale * chosen.V.to(cmap.device, cmap.dtype)).float().cpu()
        effects = FeatureSet(
            chosen.V,
            torch.nn.functional.normalize(D, dim=-1),
            chosen.alpha,
            scale,
            self.source,
            self.target,
            chosen.meta,
        )
        merged = {how: effects.merged(how) for how in ("mean", "svd")}

        def ablated(direction: torch.Tensor) -> float:
            with ablate(contest.lm, direction):
                return contest.plain(dealt.test)

        added = [contest.contrasts(dealt.test, merged[how])[1][0] for how in ("mean", "svd")]
        row["add v"] = [mean(row["tested"]), tested[hits[0]], *added]
        for what, name in (("ablate v", "V"), ("ablate u", "U")):
            singles = [ablated(v) for v in getattr(effects, name)[:_SINGLES]]
            row[what] = [
                mean(singles),
                singles[0],
                *(ablated(getattr(merged[how], name)) for how in ("mean", "svd")),
            ]
        found = spread(effects.V)
        alone = len(hits) == 1
        return {
            **row,
            "condition": None if alone else found.condition_number,
            "cos": None if alone else found.mean,
        }

    def table(self, rows: Sequence[Row]) -> str:
        """Held-out contrasts, mean ± standard error over shuffles, and what the hits are like."""
        some = [row for row in rows if row["hits"]]
        lines = [
            [what, *(cell([row[what][i] for row in some]) for i in range(len(_WHO)))]
            for what in _WHAT
        ]
        again = sum(test >= self.threshold for row in rows for test in row["tested"])
        told = {
            name: cell([row.get(name) for row in rows])
            for name in ("hits", "random_hits", "unsteered", "cos", "condition")
        }
        return markdown(["", *_WHO], lines) + (
            f"\n{told['hits']} of {self.num_factors} features reach {self.threshold:g}, of random ones {told['random_hits']}; {again} of "
            f"{sum(row['hits'] for row in rows)} on test prompts too; "
            f"unsteered {told['unsteered']}; mean |cos| {told['cos']}; condition number {told['condition']}. {_SINGLES} at most are ablated singly.\n"
        )

    def picture(self, rows: Sequence[Row]) -> bytes:
        """Held-out contrasts of all hits, beside those of their mean and their main direction."""
        canvas, axes = blank(3.6)
        for row in rows:
            x = row["shuffle"]
            axes.plot(
                [x] * row["hits"],
                row["tested"],
                "o",
                ms=3,
                alpha=0.4,
                color="tab:blue",
                label="single" if x == 0 else None,
            )
            if row["hits"]:
                axes.plot(
                    [x + 0.15],
                    row["add v"][2:3],
                    "s",
                    color="tab:orange",
                    label="mean vector" if x == 0 else None,
                )
                axes.plot(
                    [x + 0.25],
                    row["add v"][3:],
                    "^",
                    color="tab:green",
                    label="SVD vector" if x == 0 else None,
                )
            axes.plot([x - 0.2, x + 0.3], [row["unsteered"]] * 2, color="grey", lw=0.8)
        a, b = self.contrast
        axes.set(
            xlabel="shuffle",
            ylabel=f"held-out logit({a}) − logit({b})",
            xticks=range(self.shuffles),
        )
        return png(canvas)
