"""Many replies to a prompt: of as many features, or drawn at a temperature, which is the cheapest way to make a model say something else."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..bank import Bank
from ..causal_map import CausalMap
from ..edit import Several
from ..generate import Completion, decode, generate
from ..model import LanguageModel
from ..prompts import Prompts
from ..rows import Row
from ..ways import Ground
from .pool import Deal, Pool, Pooled

#: In the place of a way's name.
TEMPERATURE = "temperature"


def steered(lm: LanguageModel, prompts: Prompts, bank: Bank, strength: float, max_new_tokens: int) -> list[list[Completion]]:
    """Replies to each prompt, one of each feature, at a multiple of R."""
    table = generate(lm, prompts, bank, max_new_tokens=max_new_tokens, strength=strength, progress=False)
    return [[c for c in table if c.kind == "feature" and c.prompt == p] for p in range(len(prompts))]


def drawn(lm: LanguageModel, prompts: Prompts, num: int, temperature: float, max_new_tokens: int, seed: int) -> list[list[Completion]]:
    """``num`` replies to each prompt, drawn at a temperature."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        asked = [tokens for tokens in prompts.tokens for _ in range(num)]
        said = decode(lm, asked, Several(()), max_new_tokens, progress=False, temperature=temperature)
    texts = lm.tokenizer.batch_decode(said, skip_special_tokens=True)
    rows = [Completion("drawn", j % num, j // num, prompts.texts[j // num], texts[j], tuple(said[j])) for j in range(len(said))]
    return [rows[p * num : (p + 1) * num] for p in range(len(prompts))]


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

    def speaker(self, pool: Pool, dealt: Deal, scale: float, case: Row) -> tuple[Callable[[Prompts, float], list[list[Completion]]], dict[str, Any]]:
        """What replies to prompts at a strength or temperature, m times to each; and what learning it has cost."""
        m, seed = self.num_factors, case["shuffle"]
        if case["way"] == TEMPERATURE:
            return lambda prompts, at: drawn(pool.lm, prompts, m, at, self.max_new_tokens, seed), {}
        ground = Ground(CausalMap(pool.lm, dealt.learn, self.source, self.target), scale)
        bank, cost = ground.candidates(case["way"], m, seed)
        return lambda prompts, at: steered(pool.lm, prompts, bank, at, self.max_new_tokens), cost
