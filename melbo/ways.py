"""Ways to find features, by one interface: what learns them, what they are compared with, and what finding them costs."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from .adapter_map import AdapterMap
from .calibrate import calibrate
from .causal_map import CausalMap
from .controls import control
from .errors import MelboError
from .features import FeatureSet
from .fit import fit
from .methods import CPE, Exponential, Linear, Melbo, Method, ProjectedLinear, Quadratic
from .oracles import Map
from .rank_one import random_factors

#: What one direction costs in each oracle, in passes through the slice (a forward pass, one with tangents, and a backward pass count the same; where
#: prompts do not fit a pass together, a forward pass more).
PASSES = {"value": 1, "value_and_vjp": 2, "vjp": 1, "backward": 1, "jvp": 1, "hvp": 2, "bilinear": 2}
_STEPS = 12  # of MELBO
_PATH = 8.4  # MELBO's steps × learning rate: 12 steps of .7 reach what 300 of the published .006 do (615, 622 in the mean; by hand, bundled model)


@dataclass(frozen=True)
class Way:
    """A way to features.

    Attributes:
        what: In words.
        method: From m, R and the number of MELBO's steps; None for a control.
        stacked: Whether it looks at prompts and tokens stacked, not averaged.
        of_norm: Whether its directions depend on R.
        seeded: Whether anything in it is random.
        adapters: Whether they are rank-one edits, not directions.
        signed: Whether a direction is meant to be pushed along one way only; controls are as good both ways.
    """

    what: str
    method: Callable[[int, float, int], Method] | None = None
    stacked: bool = False
    of_norm: bool = False
    seeded: bool = True
    adapters: bool = False
    signed: bool = True


#: Names and what they mean; the controls last.
WAYS = {
    "exponential": Way("exponential transcoder, trained at each norm", lambda m, R, _: Exponential(m, R), of_norm=True),
    "soft": Way("exponential transcoder, softly orthogonalised", lambda m, R, _: Exponential(m, R, orthogonalise="soft"), of_norm=True),
    "melbo": Way(
        "MELBO, gradient ascent at each norm", lambda m, R, steps: Melbo(m, R, steps=steps, learning_rate=_PATH / steps), stacked=True, of_norm=True
    ),
    "linear": Way("singular vectors of the averaged Jacobian", lambda m, R, _: Linear(m, R), seeded=False, signed=False),
    "projected": Way("singular vectors of the Jacobian through 32 random outputs", lambda m, R, _: ProjectedLinear(m, R), signed=False),
    "stacked": Way(
        "singular vectors of the Jacobian stacked over prompts and tokens", lambda m, R, _: Linear(m, R), stacked=True, seeded=False, signed=False
    ),
    "quadratic": Way("quadratic transcoder", lambda m, R, _: Quadratic(m, R), signed=False),
    "cpe": Way("CPE, rank-one edits of five blocks, trained at each norm", lambda m, R, _: CPE(m, R, max_steps=20), of_norm=True, adapters=True),
    "random": Way("control: uniform on the sphere"),
    "covariance": Way("control: drawn with the covariance of ordinary activations"),
    "unrelated": Way("control: differences of the activations of two unrelated prompts"),
    "columns": Way("control: what single neurons of the MLP before the source write"),
    "adapters": Way("control: random rank-one edits of the same blocks", adapters=True),
}


def check_number(ways: Iterable[str], num: int) -> None:
    """Refuse a number of candidates that some way cannot give.

    Raises:
        MelboError: An odd one, of a way that gives no sign: half of its candidates are negatives.
    """
    if wrong := [name for name in ways if name in WAYS and not WAYS[name].signed and num % 2]:
        raise MelboError(f"{wrong[0]} gives no sign, so that half of its candidates are negatives: expected an even number, got {num}")


def configured(name: str, num: int) -> str | None:
    """What a way learns ``num`` candidates with, all settings spelled out, so that rows of other settings are told apart; None of a control."""
    method = WAYS[name].method if name in WAYS else None
    return None if method is None else repr(method(_of(name, num), 1.0, _STEPS))


def _of(name: str, num: int) -> int:
    """How many features ``num`` candidates take."""
    return num if WAYS[name].signed else num // 2


class Ground:
    """Where features are looked for: a map of directions or of adapters, averaged and stacked, and its scale.

    Attributes:
        map: The averaged map.
        stacked: The same, prompts and tokens stacked.
        scale: R.
    """

    def __init__(self, cmap: CausalMap, scale: float | None = None, progress: bool = True) -> None:
        self.map, self.stacked = cmap, type(cmap).from_description(cmap.lm, {**cmap.describe(), "concatenate": True})
        self.stacked.tokens_per_pass, self.stacked.compile = cmap.tokens_per_pass, cmap.compile
        self.scale = calibrate(cmap, progress=progress).scale if scale is None else scale

    def find(self, name: str, m: int, R: float, steps: int = _STEPS, seed: int = 0) -> tuple[Tensor, dict[str, float]]:
        """Features of a way of this map's kind.

        Args:
            name: One of `WAYS`.
            m: How many.
            R: Norm at which ways learn that do so at a norm.
            steps: Of MELBO.
            seed: Of everything random.

        Returns:
            Unit rows ``[m, d_source]``, and what they cost: passes of a direction through the slice, seconds.

        Raises:
            MelboError: A way of the other kind, or what its method raises.
        """
        way, cmap = WAYS[name], self.map
        if way.adapters != isinstance(cmap, AdapterMap):
            raise MelboError(f"{name} finds {'adapters' if way.adapters else 'directions'}, the map is a {type(cmap).__name__}: give the other kind")
        start, counted = time.perf_counter(), _Counted(self.stacked if way.stacked else cmap)
        draw = torch.Generator().manual_seed(seed)
        if way.method is not None:
            V = fit(cast(Map, counted), way.method(m, R, steps), seed=seed, progress=False).features.V
        elif isinstance(cmap, AdapterMap):
            V = random_factors(cmap.sites, m, draw)
        else:
            V = control(cmap.lm, cmap.prompts, cmap.source, name, m, draw)
        return V.float().cpu(), {"passes": counted.passes, "seconds": time.perf_counter() - start}

    def candidates(self, name: str, num: int, seed: int = 0) -> tuple[FeatureSet, dict[str, float]]:
        """``num`` features of a way at its scale, half of them negatives where it gives no sign; and what they cost.

        Raises:
            MelboError: An odd number of these, or as `find`.
        """
        check_number([name], num)
        V, cost = self.find(name, _of(name, num), self.scale, seed=seed)
        return self.bank_of(V if WAYS[name].signed else torch.cat([V, self.map.opposite(V)]), self.scale), cost

    def bank_of(self, V: Tensor, scale: float) -> FeatureSet:
        """Unit rows ``[m, d_source]`` as a set of features, of which no more is known."""
        kind: type[FeatureSet] = getattr(self.map, "bank", FeatureSet)
        return kind(V, V, torch.zeros(len(V)), scale, self.map.source, self.map.target, {"map": self.map.describe()})


def adapters_like(cmap: CausalMap) -> AdapterMap:
    """The map of adapters that reads what a map of directions reads.

    Raises:
        MelboError: What it reads, or which tokens it steers, is nothing that adapters know.
    """
    if (cmap.read, cmap.positions, cmap.skip_first) != ("stream", "all", False):
        raise MelboError("adapters are read in the stream and act at every token: leave read, positions and skip_first out to compare with them")
    return AdapterMap(cmap.lm, cmap.prompts, target=cmap.target, target_tokens=cmap.target_tokens, normalise_target=cmap.normalise_target)


class _Counted:
    """A map that counts passes."""

    def __init__(self, map: Map) -> None:
        self.map, self.passes = map, 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.map, name)
        if name not in PASSES:
            return found
        each = 2 if name == "backward" and self.map.parts else PASSES[name]  # of adapters that is a gradient at a random one

        def oracle(rows: Tensor, *more: Any) -> Any:
            self.passes += each * len(rows)
            return found(rows, *more)

        return oracle
