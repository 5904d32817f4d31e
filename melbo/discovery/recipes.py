"""Recipes for features, learnt or control, under one interface, with their cost."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from melbo.discovery.controls import control
from melbo.discovery.fit import feature_kind, fit
from melbo.errors import MelboError
from melbo.features.directions import FeatureSet
from melbo.maps.adapter import AdapterMap
from melbo.maps.calibrate import calibrate
from melbo.maps.model_map import ModelMap
from melbo.maps.residual import CausalMap
from melbo.maths.linalg import random_rows
from melbo.methods.ascent import Melbo
from melbo.methods.base import Method
from melbo.methods.exponential import CPE, Exponential
from melbo.methods.linear import Linear, ProjectedLinear
from melbo.methods.quadratic import Quadratic
from melbo.models.weights.low_rank import random_factors

#: Steps of MELBO unless told otherwise.
MELBO_STEPS = 12
# MELBO's steps × learning rate: 12 steps of .7 reach as much as 300 of the published .006
# (615 and 622 in the mean; measured by hand on the bundled model)
_PATH = 8.4


@dataclass(frozen=True)
class Recipe:
    """A recipe for features.

    Attributes:
        description: The recipe in words.
        method: Function that makes the method from m, R and the number of MELBO's steps; None for a
            control.
        stacked: Whether prompts and tokens are stacked, not averaged.
        fitted_per_norm: Whether features depend on R, so that each norm has a fit of its own.
        seeded: Whether anything in it is random.
        weight_edits: Whether it gives rank-one edits of weights instead of directions.
        signed: Whether directions are meant to be pushed one way only. Controls count as signed,
            being as good both ways.
    """

    description: str
    method: Callable[[int, float, int], Method] | None = None
    stacked: bool = False
    fitted_per_norm: bool = False
    seeded: bool = True
    weight_edits: bool = False
    signed: bool = True


def _melbo(m: int, R: float, steps: int) -> Melbo:
    return Melbo(m, R, steps=steps, learning_rate=_PATH / steps)


#: Recipes by name; the controls last.
RECIPES = {
    "exponential": Recipe(
        "exponential transcoder, trained at each norm",
        lambda m, R, _: Exponential(m, R),
        fitted_per_norm=True,
    ),
    "soft": Recipe(
        "exponential transcoder, softly orthogonalised",
        lambda m, R, _: Exponential(m, R, orthogonalise="soft"),
        fitted_per_norm=True,
    ),
    "melbo": Recipe(
        "MELBO, gradient ascent at each norm", _melbo, stacked=True, fitted_per_norm=True
    ),
    "linear": Recipe(
        "singular vectors of the averaged Jacobian",
        lambda m, R, _: Linear(m, R),
        seeded=False,
        signed=False,
    ),
    "projected": Recipe(
        "singular vectors of the Jacobian through 32 random outputs",
        lambda m, R, _: ProjectedLinear(m, R),
        signed=False,
    ),
    "stacked": Recipe(
        "singular vectors of the Jacobian stacked over prompts and tokens",
        lambda m, R, _: Linear(m, R),
        stacked=True,
        seeded=False,
        signed=False,
    ),
    "quadratic": Recipe("quadratic transcoder", lambda m, R, _: Quadratic(m, R), signed=False),
    "cpe": Recipe(
        "CPE, rank-one edits of five blocks, trained at each norm",
        lambda m, R, _: CPE(m, R, max_steps=20),
        fitted_per_norm=True,
        weight_edits=True,
    ),
    "random": Recipe("control: uniform on the sphere"),
    "covariance": Recipe("control: drawn with the covariance of ordinary activations"),
    "unrelated": Recipe("control: differences of the activations of two unrelated prompts"),
    "columns": Recipe("control: what single neurons of the MLP before the source write"),
    "adapters": Recipe("control: random rank-one edits of the same blocks", weight_edits=True),
}


def is_control(name: str) -> bool:
    """Tell whether a name is that of a recipe that learns nothing."""
    return name in RECIPES and RECIPES[name].method is None


def check_number(recipes: Iterable[str], num: int) -> None:
    """Refuse a number of candidates that some recipe cannot give.

    Args:
        recipes: Names; any that is no recipe's is passed over.
        num: Number of candidates of each.

    Raises:
        MelboError: The number is odd and a recipe gives no sign: half of its candidates are
            negatives.
    """
    unsigned = [name for name in recipes if name in RECIPES and not RECIPES[name].signed]
    if unsigned and num % 2:
        raise MelboError(
            f"{unsigned[0]} gives no sign, so that half of its candidates are negatives: "
            f"expected an even number, got {num}"
        )


def method_identity(name: str, num: int) -> dict[str, Any] | None:
    """Method of a recipe with its settings that differ from the defaults, JSON-able.

    Result rows are keyed by it. A new setting with a default leaves them valid; a default that
    changes asks for a new version of the benchmark.

    Args:
        name: Name of a recipe.
        num: Number of candidates.

    Returns:
        The method; None if the name is that of a control, or of no recipe.
    """
    method = RECIPES[name].method if name in RECIPES else None
    if method is None:
        return None
    # R is no part of an identity, so any will do
    return method(_num_factors(name, num), 1.0, MELBO_STEPS).identity()


def _num_factors(name: str, num: int) -> int:
    """Number of features that give this many candidates."""
    return num if RECIPES[name].signed else num // 2


class FeatureSearch:
    """Search for features by any recipe on one map, averaged or stacked, at one scale.

    Args:
        map: Map of directions or of adapters, averaged.
        scale: R; if left out it is calibrated.
        progress: Whether to draw bars.

    Attributes:
        map: The averaged map.
        scale: R.
    """

    def __init__(self, map: ModelMap, scale: float | None = None, progress: bool = True) -> None:
        self.map = map
        self.scale = calibrate(map, progress=progress).scale if scale is None else scale

    @cached_property
    def stacked(self) -> ModelMap:
        """The same map with prompts and tokens stacked, made when it is first asked for."""
        description = {**self.map.describe(), "concatenate": True}
        stacked = type(self.map).from_description(self.map.lm, description)
        stacked.tokens_per_pass, stacked.compile = self.map.tokens_per_pass, self.map.compile
        return stacked

    def find(
        self, name: str, m: int, R: float, steps: int = MELBO_STEPS, seed: int = 0
    ) -> tuple[Tensor, dict[str, float]]:
        """Find features by a recipe that suits this kind of map.

        Args:
            name: One of `RECIPES`.
            m: Number of features.
            R: Norm of the perturbation, for recipes whose directions depend on it.
            steps: Steps of MELBO.
            seed: Random seed.

        Returns:
            Unit rows ``[m, d_source]``, and their cost: ``passes`` of a direction through the
            slice, and ``seconds``.

        Raises:
            MelboError: The recipe is for the other kind of map, or its method refuses the map.
        """
        recipe, map = RECIPES[name], self.map
        if recipe.weight_edits != isinstance(map, AdapterMap):
            raise MelboError(
                f"{name} finds {'adapters' if recipe.weight_edits else 'directions'}, the map is a "
                f"{type(map).__name__}: give the other kind"
            )
        used = self.stacked if recipe.stacked else map
        start, before = time.perf_counter(), used.passes
        generator = torch.Generator().manual_seed(seed)
        if recipe.method is not None:
            method = recipe.method(m, R, steps)
            V = fit(used, method, seed=seed, progress=False).features.V
        elif isinstance(map, AdapterMap):
            V = random_factors(map.sites, m, generator)
        else:
            V = control(map.lm, map.prompts, map.source, name, m, generator)
        cost = {"passes": used.passes - before, "seconds": time.perf_counter() - start}
        return V.float().cpu(), cost

    def candidates(self, name: str, num: int, seed: int = 0) -> tuple[FeatureSet, dict[str, float]]:
        """Find candidates by a recipe at its scale, half of them negatives if it gives no sign.

        Args:
            name: One of `RECIPES`.
            num: Number of candidates.
            seed: Random seed.

        Returns:
            The candidates, and their cost (see `find`).

        Raises:
            MelboError: The number is odd and the recipe gives no sign, or `find` refuses the rest.
        """
        check_number([name], num)
        V, cost = self.find(name, _num_factors(name, num), self.scale, seed=seed)
        if not RECIPES[name].signed:
            V = torch.cat([V, self.map.opposite(V)])
        return self.feature_set(V, self.scale), cost

    def feature_set(self, V: Tensor, scale: float) -> FeatureSet:
        """Unit rows as a set of features, with nothing known of their effects.

        U is drawn at random and α is zero, as in `FeatureSet.random`: a caller that looks for
        effects finds what chance gives.

        Args:
            V: Rows ``[m, d_source]``.
            scale: R.
        """
        map, meta = self.map, {"map": self.map.describe()}
        U = random_rows(len(V), map.d_target, torch.Generator().manual_seed(0))
        kind = feature_kind(map)
        return kind(V, U, torch.zeros(len(V)), scale, map.source, map.target, meta)


def adapters_like(cmap: CausalMap) -> AdapterMap:
    """Make the map of adapters that reads the same as a map of directions.

    Args:
        cmap: Map of directions.

    Raises:
        MelboError: Adapters cannot be read, or placed, as this map is.
    """
    placement = cmap.placement
    if (cmap.read, placement.positions, placement.skip_first) != ("stream", "all", False):
        raise MelboError(
            "adapters are read in the stream and act at every token: "
            "leave read, positions and skip_first out to compare with them"
        )
    return AdapterMap(
        cmap.lm,
        cmap.prompts,
        target=cmap.target,
        target_tokens=placement.target_tokens,
        normalise_target=cmap.normalise_target,
    )
