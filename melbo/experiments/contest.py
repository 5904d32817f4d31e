"""What experiments on a contrast have in common: who makes logit(a) − logit(b) of the first token of a reply largest?"""

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from ..features import FeatureSet
from ..generate import generate
from ..prompts import Prompts, read_texts
from ..rank import first_tokens
from ..score import FirstToken
from .pool import Deal, Pool, Pooled


@dataclass(frozen=True, kw_only=True)
class Contested(Pooled):
    """An experiment on a contrast.

    Attributes:
        contrast: Two strings A and B: the contrast is logit(A) − logit(B) of the first token of the reply.
        num_factors: m.
        validation: Number of validation prompts.
    """

    contrast: tuple[str, str]
    num_factors: int
    validation: int

    def contest(self, learn: int) -> "Contest":
        """The model, the pool and the pair; ``learn``, how many prompts are learnt from at most."""
        pool = self.pool(read_texts(Path(self.prompts)), learn, self.validation)
        return Contest(**vars(pool), pair=first_tokens(pool.lm, self.contrast))


@dataclass(frozen=True)
class Contest(Pool):
    """A pool, and the two tokens of a contrast.

    Attributes:
        pair: The tokens a and b.
    """

    pair: tuple[int, int]

    def contrasts(self, prompts: Prompts, bank: FeatureSet) -> tuple[float, list[float]]:
        """Mean contrast over prompts, of the unsteered model and of each feature."""
        first = FirstToken(1 + len(bank), self.pair)
        table = generate(self.lm, prompts, bank, max_new_tokens=1, first_logits=first.take, progress=False)
        found: dict[Any, list[float]] = {}
        for i, c in enumerate(table):
            found.setdefault(c.feature, []).append(-math.inf if i in first.overflowed else first.contrast[i])
        return mean(found[None]), [mean(found[i]) for i in range(len(bank))]

    def plain(self, prompts: Prompts) -> float:
        """Mean contrast of the model as it is just now."""
        found = []
        for tokens in prompts.tokens:
            with torch.no_grad():
                logits = self.lm.model(torch.tensor([tokens], device=self.lm.device)).logits[0, -1].float()
            found.append((logits[self.pair[0]] - logits[self.pair[1]]).item())
        return mean(found)

    def best(self, dealt: Deal, bank: FeatureSet) -> dict[str, float]:
        """The feature with the highest contrast on validation prompts: its contrast there and on test prompts, and that of the unsteered model."""
        _, of_each = self.contrasts(dealt.validation, bank)
        winner = max(range(len(bank)), key=of_each.__getitem__)
        unsteered, (held_out,) = self.contrasts(dealt.test, bank[winner])
        return {"validation": of_each[winner], "test": held_out, "unsteered": unsteered}
