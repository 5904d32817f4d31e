"""Many replies to a prompt: of as many features, or drawn at a temperature, which is the cheapest way to make a model say something else."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from melbo.discovery.recipes import FeatureSearch
from melbo.features.generate import Completion
from melbo.maps.residual import CausalMap
from melbo.models.language_model import LanguageModel
from melbo.models.prompts import Prompts
from melbo.records import Row
from research.experiments.pool import Deal, Pool, Pooled
from research.organisms.candidates import Candidates, Drawn, Steered

#: In the place of a way's name.
TEMPERATURE = "temperature"


@dataclass(frozen=True, kw_only=True)
class Replying(Pooled):
    """An experiment on as many replies to a prompt: of features of several ways at several strengths, and drawn at several temperatures.

    Attributes:
        ways: Some of `melbo.ways.WAYS`.
        strengths: Multiples of R.
        temperatures: Of the samples.
        number: How many prompts are learnt from.
        num_factors: m, also how many samples are drawn.
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
    source: int
    target: int
    max_new_tokens: int

    @property
    def every(self) -> tuple[str, ...]:
        """The ways, and sampling."""
        return (*self.recipes, TEMPERATURE)

    @property
    def cases(self) -> list[Row]:
        """Shuffle after shuffle."""
        return [self.case(s, recipe=recipe) for s in range(self.shuffles) for recipe in self.every]

    def settings_of(self, recipe: str) -> tuple[float, ...]:
        """What is tried of it: strengths or temperatures."""
        return self.temperatures if recipe == TEMPERATURE else self.strengths

    def tried(
        self, pool: Pool, dealt: Deal, scale: float, case: Row
    ) -> tuple[Callable[[float], Candidates], dict[str, Any]]:
        """What replies m times to a prompt, at each strength or temperature; and what learning it has cost."""
        m, seed = self.num_factors, case["shuffle"]
        if case["recipe"] == TEMPERATURE:
            return lambda at: Drawn((at,) * m, seed), {}
        search = FeatureSearch(CausalMap(pool.lm, dealt.learn, self.source, self.target), scale)
        features, cost = search.candidates(case["recipe"], m, seed)
        return lambda at: Steered(features, at), cost

    def said(
        self, lm: LanguageModel, prompts: Prompts, tried: Candidates
    ) -> list[list[Completion]]:
        """As many replies to each prompt as are tried."""
        table = tried.replies(lm, prompts, self.max_new_tokens, unsteered=False, progress=False)
        return [[c for c in table if c.prompt == p] for p in range(len(prompts))]
