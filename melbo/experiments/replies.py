"""Many replies to a prompt: of as many features, or drawn at a temperature, which is the cheapest way to make a model say something else."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from ..causal_map import CausalMap
from ..generate import Completion
from ..model import LanguageModel
from ..organisms.candidates import Candidates, Drawn, Steered
from ..prompts import Prompts
from ..rows import Row
from ..ways import Ground
from .pool import Deal, Pool, Pooled

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

    varied: ClassVar[tuple[str, ...]] = ("ways", "shuffles")
    ways: tuple[str, ...]
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
        return (*self.ways, TEMPERATURE)

    @property
    def cases(self) -> list[Row]:
        """Shuffle after shuffle."""
        return [self.case(s, way=way) for s in range(self.shuffles) for way in self.every]

    def settings_of(self, way: str) -> tuple[float, ...]:
        """What is tried of it: strengths or temperatures."""
        return self.temperatures if way == TEMPERATURE else self.strengths

    def tried(self, pool: Pool, dealt: Deal, scale: float, case: Row) -> tuple[Callable[[float], Candidates], dict[str, Any]]:
        """What replies m times to a prompt, at each strength or temperature; and what learning it has cost."""
        m, seed = self.num_factors, case["shuffle"]
        if case["way"] == TEMPERATURE:
            return lambda at: Drawn((at,) * m, seed), {}
        ground = Ground(CausalMap(pool.lm, dealt.learn, self.source, self.target), scale)
        bank, cost = ground.candidates(case["way"], m, seed)
        return lambda at: Steered(bank, at), cost

    def said(self, lm: LanguageModel, prompts: Prompts, tried: Candidates) -> list[list[Completion]]:
        """As many replies to each prompt as are tried."""
        table = tried.replies(lm, prompts, self.max_new_tokens, unsteered=False, progress=False)
        return [[c for c in table if c.prompt == p] for p in range(len(prompts))]
