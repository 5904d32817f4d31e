"""Experiments on many replies to a prompt: of as many features, or drawn at a temperature."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from melbo.discovery.candidates import Candidates
from melbo.discovery.draws import Drawn
from melbo.discovery.recipes import FeatureSearch
from melbo.discovery.steered import Steered
from melbo.features.generate import Completion
from melbo.maps.residual import CausalMap
from melbo.models.language_model import LanguageModel
from melbo.models.text.prompts import Prompts
from melbo.records import Row
from research.experiments.base import Layer
from research.experiments.pool import Deal, Pool, Pooled

#: Name of sampling, where others have the name of a recipe.
TEMPERATURE = "temperature"


@dataclass(frozen=True, kw_only=True)
class Replying(Pooled):
    """An experiment on m replies to a prompt.

    They are of m features at several strengths, found by several recipes, or drawn at several
    temperatures, the cheapest means to make a model say something else.

    Attributes:
        recipes: Some of `melbo.discovery.recipes.RECIPES`.
        strengths: Multiples of R.
        temperatures: Temperatures of the samples.
        number: Number of prompts that are learnt from.
        num_factors: Number of features m, and of samples.
        source: Layer that is perturbed.
        target: Layer that is read.
        max_new_tokens: Length of a reply at most.
    """

    varied: ClassVar[tuple[str, ...]] = ("recipes", "shuffles")
    recipes: tuple[str, ...]
    strengths: tuple[float, ...]
    temperatures: tuple[float, ...]
    number: int
    num_factors: int
    source: Layer
    target: Layer
    max_new_tokens: int

    @property
    def every(self) -> tuple[str, ...]:
        """The recipes, and sampling."""
        return (*self.recipes, TEMPERATURE)

    @property
    def cases(self) -> list[Row]:
        """The cases, shuffle after shuffle."""
        return [self.case(s, recipe=recipe) for s in range(self.shuffles) for recipe in self.every]

    def settings_of(self, recipe: str) -> tuple[float, ...]:
        """Strengths that a recipe is tried at, or temperatures of sampling."""
        return self.temperatures if recipe == TEMPERATURE else self.strengths

    def tried(
        self, pool: Pool, dealt: Deal, scale: float, case: Row
    ) -> tuple[Callable[[float], Candidates], dict[str, Any]]:
        """Candidates that reply m times to a prompt.

        Args:
            pool: The pool.
            dealt: Prompts of the case.
            scale: R.
            case: The case, with its recipe and shuffle.

        Returns:
            Function from a strength or temperature to candidates, and the cost of learning them.
        """
        m, seed = self.num_factors, case["shuffle"]
        if case["recipe"] == TEMPERATURE:
            return lambda at: Drawn.at((at,), m, seed), {}
        search = FeatureSearch(CausalMap(pool.lm, dealt.learn, self.source, self.target), scale)
        features, cost = search.candidates(case["recipe"], m, seed)
        return lambda at: Steered(features, at), cost

    def said(
        self, lm: LanguageModel, prompts: Prompts, tried: Candidates
    ) -> list[list[Completion]]:
        """Replies of all candidates, prompt by prompt."""
        table = tried.replies(lm, prompts, self.max_new_tokens, unsteered=False, progress=False)
        return [[c for c in table if c.prompt == p] for p in range(len(prompts))]
