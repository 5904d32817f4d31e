"""What experiments on a contrast have in common: prompts dealt into three parts, and the contrast of each feature on one of them."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from ..causal_map import CausalMap
from ..errors import MelboError
from ..features import FeatureSet
from ..generate import generate
from ..load import load
from ..model import LanguageModel
from ..prompts import Prompts, read_texts
from ..rank import first_tokens
from ..score import FirstToken
from ..ways import Ground

_CALIBRATION = 4  # prompts of the pool that the scale is found on


@dataclass(frozen=True)
class Deal:
    """Prompts to learn from, to validate and to test; none in two of them."""

    learn: Prompts
    validation: Prompts
    test: Prompts


@dataclass(frozen=True)
class Contest:
    """A model, a pool of prompts, and two tokens a and b: who makes logit(a) − logit(b) of the first token of a reply largest?

    Attributes:
        lm: The model.
        texts: The pool.
        pair: The tokens.
        validation: Number of validation prompts.
        test: Number of test prompts.
    """

    lm: LanguageModel
    texts: tuple[str, ...]
    pair: tuple[int, int]
    validation: int
    test: int

    @classmethod
    def of(cls, model: str, dtype: str, prompts: str, contrast: tuple[str, str], learn: int, validation: int, test: int) -> "Contest":
        """Load the model and read the pool, a file with one prompt a line.

        Raises:
            MelboError: A file that cannot be read, or that holds too few prompts.
        """
        texts = tuple(dict.fromkeys(read_texts(Path(prompts))))
        need = _CALIBRATION + learn + validation + test
        if len(texts) < need:
            raise MelboError(f"{prompts} holds {len(texts)} prompts, expected {need}: add some, or lower what is learnt from, validation or test")
        lm = load(model, dtype)
        return cls(lm, texts, first_tokens(lm, contrast), validation, test)

    def deal(self, shuffle: int, number: int) -> Deal:
        """Of one shuffle; more prompts to learn from are those of fewer, and others."""
        dealt = list(self.texts[_CALIBRATION:])
        random.Random(shuffle).shuffle(dealt)
        test, rest = dealt[: self.test], dealt[self.test :]
        learn, validation = rest[self.validation :][:number], rest[: self.validation]
        return Deal(*(Prompts.chat(self.lm, texts) for texts in (learn, validation, test)))

    def scale(self, source: int, target: int) -> float:
        """R for these layers, on prompts that are never dealt: one for all ways and numbers of prompts."""
        return Ground(CausalMap(self.lm, Prompts.chat(self.lm, self.texts[:_CALIBRATION]), source, target), progress=False).scale

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


def digest(path: str) -> str:
    """Of a file of prompts, so that rows of another are told apart; of one that is not there, its name.

    The experiment says that it is not there when it runs.
    """
    return sha256(Path(path).read_bytes()).hexdigest()[:16] if Path(path).is_file() else path


def over(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and standard error; None where there is too little for them."""
    return (mean(values) if values else None), (stdev(values) / len(values) ** 0.5 if len(values) > 1 else None)


def cell(values: Sequence[float]) -> str:
    """The two, in a table."""
    middle, error = over(values)
    return "–" if middle is None else f"{middle:.2f}" + (f" ± {error:.2f}" if error is not None else "")
