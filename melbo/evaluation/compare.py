"""Recipes for features side by side: at the same prompts, layers and norms, with controls."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from melbo.discovery.recipes import (
    MELBO_STEPS,
    RECIPES,
    FeatureSearch,
    adapters_like,
    is_control,
)
from melbo.errors import MelboError
from melbo.evaluation.comparison import Comparison, ComparisonRow
from melbo.evaluation.held_out import refuse_reused
from melbo.evaluation.scores import FLAGS, Judged
from melbo.features.generate import Completions, first_tokens, generate
from melbo.features.steerable import Mixed
from melbo.maps.residual import CausalMap
from melbo.maths.statistics import mean
from melbo.maths.transcoder import exponential_factors
from melbo.models.text.prompts import Prompts
from melbo.progress import track

_RARE = ("soft", "projected", "quadratic", "columns")
#: Recipes that are compared unless told otherwise.
USUAL = tuple(
    name for name, recipe in RECIPES.items() if name not in _RARE and not recipe.weight_edits
)


def compare(
    cmap: CausalMap,
    held_out: Prompts,
    scale: float | None = None,
    *,
    recipes: Sequence[str] = USUAL,
    num_factors: int = 32,
    times: Sequence[float] = (0.5, 1.0, 1.5, 2.0),
    seeds: int = 3,
    steps: int = MELBO_STEPS,
    contrast: tuple[str, str] | None = None,
    max_new_tokens: int = 12,
    progress: bool = True,
) -> Comparison:
    """Find features by each recipe, and measure what they do at the same norms with both signs.

    Args:
        cmap: Δ, averaged; its stacked form, and the map of adapters, are made from it.
        held_out: Prompts that are replied to; none of them is one of the map's.
        scale: R of directions; calibrated if left out. R of adapters is always calibrated.
        recipes: Names from `melbo.discovery.recipes.RECIPES`.
        num_factors: m, features of each recipe.
        times: Norms in multiples of R. Recipes that learn at a norm are fitted at each.
        seeds: Number of fits of each recipe that is random, with seeds 0, 1, …
        steps: Steps of MELBO; by its learning rate they lead about as far as 300 published ones.
        contrast: Two strings; the logits of their first tokens are compared.
        max_new_tokens: Length of a reply at most.
        progress: Whether to draw bars.

    Raises:
        MelboError: There is no such recipe, a norm or number makes no sense, the map is
            concatenated, or it has seen one of the prompts.
    """
    _check_recipes(recipes)
    job = _Job(
        cmap=cmap,
        held_out=held_out,
        scale=scale,
        # all recipes for directions come first: the replies are made kind by kind, in this order
        recipes=sorted(dict.fromkeys(recipes), key=lambda name: RECIPES[name].weight_edits),
        num_factors=num_factors,
        times=tuple(dict.fromkeys(times)),
        seeds=seeds,
        steps=steps,
        contrast=contrast,
        max_new_tokens=max_new_tokens,
        progress=progress,
    )
    return job.run()


def _check_recipes(recipes: Sequence[str]) -> None:
    """Refuse a comparison of no recipe, or of one that is unknown.

    Raises:
        MelboError: There is no recipe, or an unknown one.
    """
    unknown = [name for name in recipes if name not in RECIPES]
    if unknown or not recipes:
        raise MelboError(
            f"no recipe {', '.join(unknown) or 'given'}: expected some of {', '.join(RECIPES)}"
        )


@dataclass(frozen=True)
class _Group:
    """Features of one row of the comparison.

    Attributes:
        case: Fields of the row that say what the features are and what finding them cost.
        search: The search that gave them.
        V: Unit rows ``[m, d_source]``, the sign included.
        norm: Norm by which they are pushed.
    """

    case: dict[str, Any]
    search: FeatureSearch
    V: Tensor
    norm: float

    @property
    def strengths(self) -> Tensor:
        """The norm of each ``[m]``."""
        return torch.full((len(self.V),), self.norm)

    def response(self) -> Tensor:
        """Change at every prompt and token ``[m, prompts · tokens, d]``, on the CPU."""
        stacked = self.search.stacked.value(self.strengths[:, None] * self.V)
        return stacked.cpu().reshape(len(self.V), -1, self.search.map.d_target)


@dataclass(frozen=True)
class _Job:
    """A comparison with its arguments; see `compare`."""

    cmap: CausalMap
    held_out: Prompts
    scale: float | None
    recipes: list[str]
    num_factors: int
    times: tuple[float, ...]
    seeds: int
    steps: int
    contrast: tuple[str, str] | None
    max_new_tokens: int
    progress: bool

    def run(self) -> Comparison:
        """Find, push and measure."""
        self._check_map()
        self._check_arguments()
        pair = None if self.contrast is None else first_tokens(self.cmap.lm, self.contrast)
        searches = self._searches()
        groups = self._groups(searches)
        completions = self._replies(groups, searches, pair)
        judged = Judged(self.cmap.lm, self.held_out, completions, self.progress)
        rows = []
        with track(len(groups), "effects", self.progress) as bar:
            for i, group in enumerate(groups):
                rows.append(self._row(i, group, judged))
                bar.update()
        scales = {name: searches[RECIPES[name].weight_edits].scale for name in self.recipes}
        return Comparison(rows, completions, self._settings(scales))

    def _searches(self) -> dict[bool, FeatureSearch]:
        """A search for each kind that is asked for: directions (False), adapters (True)."""
        kinds = sorted({RECIPES[name].weight_edits for name in self.recipes})
        return {
            edits: FeatureSearch(
                adapters_like(self.cmap) if edits else self.cmap,
                None if edits else self.scale,
                self.progress,
            )
            for edits in kinds
        }

    def _groups(self, searches: dict[bool, FeatureSearch]) -> list[_Group]:
        """Features of every row; those that do not depend on the norm are found once."""
        fits = [
            (name, seed)
            for name in self.recipes
            for seed in range(self.seeds if RECIPES[name].seeded else 1)
        ]
        total = sum(len(self.times) if RECIPES[name].fitted_per_norm else 1 for name, _ in fits)
        groups = []
        with track(total, "directions", self.progress) as bar:
            for name, seed in fits:
                recipe = RECIPES[name]
                search, result = searches[recipe.weight_edits], None
                for times in self.times:
                    norm = times * search.scale
                    if result is None or recipe.fitted_per_norm:
                        result = search.find(name, self.num_factors, norm, self.steps, seed)
                        bar.update()
                    V, cost = result
                    # −v of a control is as likely as v
                    for sign in (1,) if is_control(name) else (1, -1):
                        case = {"recipe": name, "times": times, "sign": sign, "seed": seed, **cost}
                        signed = V if sign > 0 else search.map.opposite(V)
                        groups.append(_Group(case, search, signed, norm))
        return groups

    def _replies(
        self,
        groups: Sequence[_Group],
        searches: dict[bool, FeatureSearch],
        pair: tuple[int, int] | None,
    ) -> Completions:
        """Replies of the features of all groups, one after the other."""
        sets = [
            search.feature_set(torch.cat([g.V for g in groups if g.search is search]), 1.0)
            for search in searches.values()
        ]
        return generate(
            self.cmap.lm,
            self.held_out,
            Mixed(sets),
            strength=torch.cat([group.strengths for group in groups]),
            max_new_tokens=self.max_new_tokens,
            contrast=pair,
            progress=self.progress,
        )

    def _row(self, number: int, group: _Group, judged: Judged) -> ComparisonRow:
        """Measures of a group of features.

        Args:
            number: Its number among the groups.
            group: The group.
            judged: Replies of all groups.
        """
        prompts = range(len(self.held_out))
        features = range(number * self.num_factors, (number + 1) * self.num_factors)
        scores = {i: judged.scores("feature", i, prompts) for i in features}
        response = group.response()
        averaged = response.mean(1)
        contrasts = [s.contrast for s in scores.values() if s.contrast is not None]
        measures = {
            "effect": averaged.norm(dim=-1).mean().item(),
            "spread_effect": response.square().sum(-1).mean(1).sqrt().mean().item(),
            "explained": exponential_factors(group.V, averaged).explained,
            "novelty": mean([s.novelty for s in scores.values()]),
            "nll": mean([s.nll for s in scores.values()]),
            "kl": mean([s.kl for s in scores.values()]),
            "contrast": mean(contrasts) if contrasts else None,
            "distinct": judged.distinct(
                [i for i, s in scores.items() if s.flag == "active"], prompts
            ),
        }
        for flag in FLAGS:
            measures[flag] = mean([float(s.flag == flag) for s in scores.values()])
        finite: dict[str, Any] = {
            name: value if value is not None and isfinite(value) else None
            for name, value in measures.items()
        }
        return ComparisonRow(**group.case, **finite)

    def _settings(self, scales: dict[str, float]) -> dict[str, Any]:
        """Arguments of the comparison, JSON-able."""
        return {
            "scales": scales,
            "times": list(self.times),
            "num_factors": self.num_factors,
            "seeds": self.seeds,
            "steps": self.steps,
            "max_new_tokens": self.max_new_tokens,
            "contrast": list(self.contrast) if self.contrast else None,
            "recipes": {name: RECIPES[name].description for name in self.recipes},
            "held_out": self.held_out.describe(),
            "map": self.cmap.describe(),
        }

    def _check_map(self) -> None:
        """Refuse a map that cannot be compared on, and prompts that it has seen.

        Raises:
            MelboError: There is such a map or prompt.
        """
        if type(self.cmap) is not CausalMap:
            raise MelboError(
                f"got a {type(self.cmap).__name__}: compare takes a map of directions, "
                "and makes that of adapters from it"
            )
        if self.cmap.concatenate:
            raise MelboError(
                "got a concatenated map: compare takes the averaged one, "
                "and makes the other from it"
            )
        refuse_reused(self.held_out, self.cmap.prompts.tokens, "held-out", "is one of the map's")

    def _check_arguments(self) -> None:
        """Refuse numbers and norms that make no sense.

        Raises:
            MelboError: There are such numbers or norms.
        """
        for name in ("num_factors", "seeds", "steps"):
            if (number := getattr(self, name)) < 1:
                raise MelboError(f"got {name}={number}: expected at least 1")
        if self.scale is not None and not (isfinite(self.scale) and self.scale > 0):
            raise MelboError(f"got scale={self.scale}: expected a positive number")
        if not self.times or not all(isfinite(x) and x > 0 for x in self.times):
            raise MelboError(f"got times={self.times}: expected one positive norm or more")
