"""What experiments on one pool of prompts have in common: a model, prompts dealt into three parts that share none, and the settings of all that."""

import random
from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

from melbo.discovery.recipes import FeatureSearch, method_identity
from melbo.errors import MelboError
from melbo.maps.residual import CausalMap
from melbo.models.language_model import LanguageModel
from melbo.models.load import load
from melbo.models.prompts import Prompts
from melbo.records import Row
from research.experiments.base import Experiment

_CALIBRATION = 4  # prompts of the pool that the scale is found on


@dataclass(frozen=True)
class Deal:
    """Prompts to learn from, to validate and to test; none in two of them.

    Attributes:
        lm: What reads them.
        texts: Of each part.
    """

    lm: LanguageModel
    texts: dict[str, Sequence[str]]

    @property
    def learn(self) -> Prompts:
        """Prompts to learn from."""
        return Prompts.chat(self.lm, self.texts["learn"])

    @property
    def validation(self) -> Prompts:
        """Prompts to choose on."""
        return Prompts.chat(self.lm, self.texts["validation"])

    @property
    def test(self) -> Prompts:
        """Prompts to report on."""
        return Prompts.chat(self.lm, self.texts["test"])


@dataclass(frozen=True)
class Pool:
    """A model and prompts for it.

    Attributes:
        lm: The model.
        texts: The prompts.
        validation: How many of them validate.
        test: How many of them test.
    """

    lm: LanguageModel
    texts: tuple[str, ...]
    validation: int
    test: int

    def deal(self, shuffle: int, number: int) -> Deal:
        """Of one shuffle; more prompts to learn from are those of fewer, and others."""
        dealt = list(self.texts[_CALIBRATION:])
        random.Random(shuffle).shuffle(dealt)
        test, rest = dealt[: self.test], dealt[self.test :]
        return Deal(
            self.lm,
            {
                "learn": rest[self.validation :][:number],
                "validation": rest[: self.validation],
                "test": test,
            },
        )

    def scale(self, source: int, target: int) -> float:
        """R for these layers, on prompts that are never dealt: one for all ways and numbers of prompts."""
        return FeatureSearch(
            CausalMap(self.lm, Prompts.chat(self.lm, self.texts[:_CALIBRATION]), source, target),
            progress=False,
        ).scale


@dataclass(frozen=True, kw_only=True)
class Pooled(Experiment, ABC):
    """An experiment on a pool of prompts, dealt anew a few times.

    Attributes:
        model: As `melbo.load` takes it.
        prompts: A file with one prompt a line.
        shuffles: How often prompts are dealt anew.
        test: Number of test prompts.
        dtype: As `melbo.load` takes it.
    """

    varied: ClassVar[tuple[str, ...]] = ("shuffles",)
    model: str
    prompts: str
    shuffles: int
    test: int
    dtype: str = "auto"

    def case(self, shuffle: int, **more: Any) -> Row:
        """A case: the settings, the weights, the pool, what is varied, and what a way learns with."""
        recipe = more.get("recipe", getattr(self, "recipe", None))
        if recipe is not None:
            more["method"] = method_identity(recipe, getattr(self, "num_factors", 0))
        return {
            "settings": self.settings,
            "weights": digest(self.model),
            "pool": digest(self.prompts),
            "shuffle": shuffle,
            **more,
        }

    def pool(self, texts: Sequence[str], learn: int, validation: int = 0) -> Pool:
        """The model and the pool, of which so many prompts are learnt from at most, and so many validate.

        Raises:
            MelboError: Too few prompts.
        """
        texts, need = tuple(dict.fromkeys(texts)), _CALIBRATION + learn + validation + self.test
        if len(texts) < need:
            raise MelboError(
                f"{self.prompts} holds {len(texts)} prompts, expected {need}: add some, or lower what is learnt from, validation or test"
            )
        return Pool(load(self.model, self.dtype), texts, validation, self.test)


def digest(path: str) -> str:
    """Of a file, or of the weights in a folder, so that rows of others are told apart; of what is not there, its name.

    The experiment says that it is not there when it runs.
    """
    files = sorted(Path(path).glob("*.safetensors")) if Path(path).is_dir() else [Path(path)]
    return (
        _hash(tuple((str(f), f.stat().st_mtime_ns) for f in files))
        if files and all(f.is_file() for f in files)
        else path
    )


@cache
def _hash(files: tuple[tuple[str, int], ...]) -> str:
    """SHA-256, begun, of files at a time: of large ones it takes a while, and every case asks for it."""
    found = sha256()
    for name, _ in files:
        with open(name, "rb") as file:
            while block := file.read(1 << 24):
                found.update(block)
    return found.hexdigest()[:16]
