"""Experiments on one pool of prompts, dealt into parts that share none."""

import random
from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

from melbo.discovery.recipes import RECIPES, FeatureSearch, check_number, method_identity
from melbo.errors import MelboError
from melbo.maps.residual import CausalMap
from melbo.models.language_model import LanguageModel
from melbo.models.loading.load import load
from melbo.models.text.prompts import Prompts
from melbo.records import Row
from research.experiments.base import VERSION, Experiment

_PROMPTS = Path(__file__).parent / "prompts"
_ORGANISMS = Path(__file__).parents[1] / "organisms" / "made"
# prompts of the pool that the scale is found on
_CALIBRATION = 4


@dataclass(frozen=True)
class Deal:
    """Prompts to learn from, to validate and to test; none in two of them.

    Attributes:
        lm: The model that reads them.
        texts: Texts of each part.
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
        validation: Number of validation prompts.
        test: Number of test prompts.
    """

    lm: LanguageModel
    texts: tuple[str, ...]
    validation: int
    test: int

    def deal(self, shuffle: int, number: int) -> Deal:
        """Deal the prompts of one shuffle.

        Args:
            shuffle: Random seed.
            number: Number of prompts to learn from; fewer are the first of more.
        """
        dealt = list(self.texts[_CALIBRATION:])
        random.Random(shuffle).shuffle(dealt)
        test, rest = dealt[: self.test], dealt[self.test :]
        validation, learn = rest[: self.validation], rest[self.validation :][:number]
        return Deal(self.lm, {"learn": learn, "validation": validation, "test": test})

    def scale(self, source: int, target: int) -> float:
        """R for these layers, on prompts that are never dealt.

        It is one for all recipes and numbers of prompts.
        """
        prompts = Prompts.chat(self.lm, self.texts[:_CALIBRATION])
        return FeatureSearch(CausalMap(self.lm, prompts, source, target), progress=False).scale


@dataclass(frozen=True, kw_only=True)
class Pooled(Experiment, ABC):
    """An experiment on a pool of prompts, dealt anew a few times.

    Attributes:
        model: Name of an organism in ``research/organisms/made``, or a model as `melbo.load`
            takes it.
        prompts: File with one prompt a line: an absolute path, or one that is relative to the
            file of the settings or to the prompts that come along.
        shuffles: Number of times that prompts are dealt.
        test: Number of test prompts.
        dtype: As `melbo.load` takes it.
    """

    varied: ClassVar[tuple[str, ...]] = ("shuffles",)
    model: str
    prompts: str
    shuffles: int
    test: int
    dtype: str = "auto"

    @property
    def model_path(self) -> str:
        """The model as `melbo.load` takes it."""
        organism = _ORGANISMS / self.model
        # of a path of several parts, or an absolute one, no organism is meant
        is_name = Path(self.model).name == self.model
        return str(organism) if is_name and organism.is_dir() else self.model

    @property
    def prompts_file(self) -> Path:
        """The file of prompts."""
        return self.find(self.prompts)

    def find(self, name: str) -> Path:
        """Path of a file, searched for beside the settings, then among the prompts.

        Args:
            name: Absolute or relative path. Where nothing is found, the path among the prompts
                is returned.
        """
        beside = self.folder / name
        return beside if beside.is_file() else _PROMPTS / name

    @property
    def named_recipes(self) -> tuple[str, ...]:
        """Recipes that the settings name, in ``recipes`` or in ``recipe``; there may be none."""
        if hasattr(self, "recipe"):
            return (self.recipe,)
        return getattr(self, "recipes", ())

    def check(self) -> None:
        """Refuse recipes that are unknown, find adapters, or cannot give m features.

        Raises:
            MelboError: There is such a recipe.
        """
        directions = [name for name, recipe in RECIPES.items() if not recipe.weight_edits]
        for name in self.named_recipes:
            if name not in RECIPES:
                raise MelboError(f"no recipe {name}: expected some of {', '.join(directions)}")
            if name not in directions:
                raise MelboError(
                    f"{name} finds adapters, and experiments take directions: "
                    f"expected some of {', '.join(directions)}"
                )
        check_number(self.named_recipes, getattr(self, "num_factors", 0))

    def case(self, shuffle: int, **more: Any) -> Row:
        """A case: version, settings, weights, pool, shuffle, and the method of its recipe.

        Args:
            shuffle: Number of the shuffle.
            more: Whatever else is varied; ``recipe`` among it, unless it is a setting.
        """
        recipe = more.get("recipe", getattr(self, "recipe", None))
        if recipe is not None:
            more["method"] = method_identity(recipe, getattr(self, "num_factors", 0))
        return {
            "version": VERSION,
            "settings": self.settings,
            "weights": digest(self.model_path, self.model),
            "pool": digest(self.prompts_file, self.prompts),
            "shuffle": shuffle,
            **more,
        }

    def pool(self, texts: Sequence[str], learn: int, validation: int = 0) -> Pool:
        """Load the model, and check that there are enough prompts.

        Args:
            texts: Prompts; repeated ones count once.
            learn: Largest number of prompts to learn from.
            validation: Number of validation prompts.

        Raises:
            MelboError: There are too few prompts.
        """
        texts, need = tuple(dict.fromkeys(texts)), _CALIBRATION + learn + validation + self.test
        if len(texts) < need:
            raise MelboError(
                f"{self.prompts} holds {len(texts)} prompts, expected {need}: "
                "add some, or lower the numbers to learn from, to validate or to test"
            )
        return Pool(load(self.model_path, self.dtype), texts, validation, self.test)


def digest(path: str | Path, name: str) -> str:
    """First 16 hex digits of the SHA-256 of a file, or of the weights in a folder.

    Part of every row's key, so rows of other prompts or weights never match.

    Args:
        path: The file or the folder.
        name: Returned if the file is missing; the experiment then fails with its own message.
    """
    path = Path(path)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or not all(f.is_file() for f in files):
        return name
    return _hash(tuple((str(f), f.stat().st_mtime_ns) for f in files))


@cache
def _hash(files: tuple[tuple[str, int], ...]) -> str:
    """Digest of files at a time; kept, since it takes a while and every case asks for it."""
    sha = sha256()
    for name, _ in files:
        with open(name, "rb") as file:
            while block := file.read(1 << 24):
                sha.update(block)
    return sha.hexdigest()[:16]
