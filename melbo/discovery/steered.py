"""Features as candidates: directions on several slices, or weight edits, at several strengths."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from melbo.discovery.candidates import in_shares, pick, some_prompts
from melbo.discovery.recipes import RECIPES, FeatureSearch, adapters_like, check_number
from melbo.errors import MelboError
from melbo.features.directions import FeatureSet
from melbo.features.generate import Completions, generate
from melbo.features.steerable import Mixed, Steerable
from melbo.maps.calibrate import calibrate
from melbo.maps.model_map import ModelMap
from melbo.maps.residual import CausalMap
from melbo.maths.keyed_random import key_of
from melbo.models.language_model import LanguageModel
from melbo.models.placement import layers_at
from melbo.models.text.prompts import Prompts

#: Slices as shares of the depth: block 12 to 24 of 30, and 8 to 20.
SLICES = ((0.4, 0.8), (8 / 30, 20 / 30))
#: Multiples of R: at R itself one reply in three of a small model is broken
#: (docs/results/organisms.md).
STRENGTHS = (0.75, 0.5)
#: Directions that R is calibrated on: strengths apart by a third need it to a tenth only.
CALIBRATED = 6


@dataclass(frozen=True)
class Steered:
    """Features as candidates.

    Attributes:
        features: The features.
        strength: Multiple of their scale; one for all, or one for each.
        about: Account of each feature, JSON-able; its index in the set if left out.
    """

    features: Steerable
    strength: float | tuple[float, ...] = 1.0
    about: tuple[Mapping[str, Any], ...] = ()

    def __len__(self) -> int:
        """Number of candidates."""
        return len(self.features)

    @property
    def strengths(self) -> tuple[float, ...]:
        """Strength of each candidate."""
        each = self.strength
        return each if isinstance(each, tuple) else (each,) * len(self)

    def only(self, which: Sequence[int]) -> "Steered":
        """Some of the candidates."""
        return replace(
            self,
            features=self.features[list(which)],
            strength=pick(self.strengths, which),
            about=tuple(self._account(i) for i in which),
        )

    def replies(
        self,
        lm: LanguageModel,
        prompts: Prompts,
        max_new_tokens: int,
        *,
        unsteered: bool,
        progress: bool,
    ) -> Completions:
        """See `Candidates.replies`."""
        return generate(
            lm,
            prompts,
            self.features,
            max_new_tokens=max_new_tokens,
            strength=torch.tensor(self.strengths),
            unsteered=unsteered,
            progress=progress,
        )

    def describe(self, i: int) -> dict[str, Any]:
        """See `Candidates.describe`."""
        return {**self._account(i), "strength": self.strengths[i]}

    def _account(self, i: int) -> Mapping[str, Any]:
        return self.about[i] if self.about else {"kind": "feature", "index": i}


@dataclass(frozen=True)
class Features:
    """Elicitor: features of any recipe, learnt on several slices and tried at several strengths.

    Every slice has its equal share of the candidates, a scale R of its own, and a prompt of its own
    to learn from, drawn from those given. Within a slice the strengths take turns.

    Attributes:
        recipe: One of `melbo.discovery.recipes.RECIPES`: ``"exponential"`` learns directions,
            ``"cpe"`` weight edits; ``"random"`` and ``"adapters"`` are their controls.
        slices: Source and target of each slice, as shares of the depth. Weight edits have blocks of
            their own, so for them the first target alone counts.
        strengths: Multiples of R.
        num_prompts: Number of prompts that a slice is learnt from.
    """

    recipe: str = "exponential"
    slices: tuple[tuple[float, float], ...] = SLICES
    strengths: tuple[float, ...] = STRENGTHS
    num_prompts: int = 1

    def __post_init__(self) -> None:
        """Refuse a recipe that does not exist.

        Raises:
            MelboError: There is no such recipe.
        """
        if self.recipe not in RECIPES:
            raise MelboError(f"no recipe {self.recipe!r}: expected one of {', '.join(RECIPES)}")

    @property
    def name(self) -> str:
        """``"directions"`` or ``"adapters"``."""
        return "adapters" if RECIPES[self.recipe].weight_edits else "directions"

    @property
    def description(self) -> str:
        """The recipe in words."""
        return f"{self.name}: {RECIPES[self.recipe].description}"

    def candidates(
        self, lm: LanguageModel, prompts: Prompts, num: int, seed: int, progress: bool
    ) -> tuple[Steered, float]:
        """See `Elicitor.candidates`.

        Raises:
            MelboError: The recipe gives no sign and the number is odd, or the search refuses it.
        """
        check_number([self.recipe], num)
        slices = self.slices[:1] if self.name == "adapters" else self.slices
        # more directions than dimensions cannot be orthogonal
        most = num if self.name == "adapters" else 2 * (lm.width // 2) * len(slices)
        shares = in_shares(min(num, most), len(slices), 1 if RECIPES[self.recipe].signed else 2)
        order = random.Random(seed).sample(range(len(prompts)), len(prompts))
        sets: list[FeatureSet] = []
        about: list[dict[str, Any]] = []
        tokens = 0.0
        for k, (share, between) in enumerate(zip(shares, slices, strict=True)):
            if not share:
                continue
            first, own_seed = k * self.num_prompts, key_of(seed, k)
            learnt = [order[(first + j) % len(order)] for j in range(self.num_prompts)]
            cmap = self._map(lm, some_prompts(prompts, learnt), between)
            scale = calibrate(cmap, num_directions=CALIBRATED, progress=progress).scale
            search = FeatureSearch(cmap, scale, progress)
            passes = cmap.passes  # of the calibration
            found, spent = search.candidates(self.recipe, share, own_seed)
            passes += int(spent["passes"])
            read = sum(map(len, cmap.prompts.tokens))
            tokens += read * (cmap.target - cmap.source) / lm.depth * passes
            sets.append(found)
            about += [self._account(found, i, learnt, own_seed) for i in range(share)]
        strengths = tuple(self.strengths[a["index"] % len(self.strengths)] for a in about)
        return Steered(sets[0] if len(sets) == 1 else Mixed(sets), strengths, tuple(about)), tokens

    def _map(self, lm: LanguageModel, prompts: Prompts, between: tuple[float, float]) -> ModelMap:
        """Map of directions on a slice, or that of adapters with the same target."""
        cmap = CausalMap(lm, prompts, *layers_at(lm.depth, between))
        return adapters_like(cmap) if self.name == "adapters" else cmap

    def _account(
        self, found: FeatureSet, index: int, learnt: Sequence[int], seed: int
    ) -> dict[str, Any]:
        return {
            "kind": self.name.removesuffix("s"),
            "recipe": self.recipe,
            "source": found.source,
            "target": found.target,
            "scale": found.scale,
            "prompts": list(learnt),
            "seed": seed,
            "of": len(found),
            "index": index,
        }
