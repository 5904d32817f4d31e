"""Extrapolation: weights moved on from those of the base, in the direction of the tuning.

Something that tuning taught under a condition is then done without it (amplification of the
difference of two models).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from melbo.discovery.candidates import pick
from melbo.discovery.differences import require_alike
from melbo.discovery.one_by_one import OneByOne
from melbo.errors import MelboError
from melbo.maths.keyed_random import key_of
from melbo.models.edits import Edit, EditSequence
from melbo.models.language_model import LanguageModel
from melbo.models.next_token import Draw
from melbo.models.text.prompts import Prompts
from melbo.models.weights.storage import Change, changed, read, require_plain

#: Factors γ by which the difference is added once more.
FACTORS = (0.5, 0.25, 1.0)


@dataclass(frozen=True)
class Extrapolated(OneByOne):
    """Weights further from the base as candidates: W ← W + γ(W − W_base), for every parameter.

    Weights are put back bit by bit after the replies of a candidate; those that differ are in
    memory twice until then.

    Attributes:
        base: The base model.
        names: Names of the parameters that differ.
        factors: γ of each candidate.
        seeds: Random seed of each candidate, which is drawn at temperature 1; None for a greedy
            one.
    """

    what: ClassVar[str] = "extrapolation"
    base: LanguageModel
    names: tuple[str, ...]
    factors: tuple[float, ...]
    seeds: tuple[int | None, ...]

    def __len__(self) -> int:
        """Number of candidates."""
        return len(self.factors)

    def only(self, which: Sequence[int]) -> "Extrapolated":
        """Some of the candidates."""
        some = pick(self.factors, which), pick(self.seeds, which)
        return Extrapolated(self.base, self.names, *some)

    @contextmanager
    def weights(self, lm: LanguageModel, i: int) -> Iterator[None]:
        """See `OneByOne.weights`."""
        beyond = [
            Change(name, partial(_beyond, self.base, name, self.factors[i])) for name in self.names
        ]
        with changed(lm.model, beyond):
            yield

    def edit(self, prompts: Prompts, i: int) -> Edit:
        """See `OneByOne.edit`."""
        seed = self.seeds[i]
        if seed is None:
            return EditSequence(())
        return Draw((1.0,) * len(prompts), tuple(key_of(seed, row) for row in prompts.tokens))

    def describe(self, i: int) -> dict[str, Any]:
        """See `Candidates.describe`."""
        return {"kind": self.what, "factor": self.factors[i], "seed": self.seeds[i]}


@dataclass(frozen=True)
class Extrapolation:
    """Elicitor: weights further from the base, greedily and then in draws.

    Attributes:
        base: The base model.
        factors: γ; they take turns.
    """

    base: LanguageModel
    factors: tuple[float, ...] = FACTORS
    name: str = field(default=Extrapolated.what, init=False)
    description: str = field(
        default="weights moved on from those of the base, in the direction of the tuning",
        init=False,
    )

    def candidates(
        self, lm: LanguageModel, prompts: Prompts, num: int, seed: int, progress: bool
    ) -> tuple[Extrapolated, float]:
        """See `Elicitor.candidates`; nothing has to be found.

        Raises:
            MelboError: The base is of another kind, weights are quantised, or none of them differ.
        """
        require_alike(lm, self.base)
        names = _different(lm, self.base)
        factors = tuple(self.factors[i % len(self.factors)] for i in range(num))
        draws = tuple(None if i < len(self.factors) else key_of(seed, i) for i in range(num))
        return Extrapolated(self.base, names, factors, draws), 0.0


def _different(lm: LanguageModel, base: LanguageModel) -> tuple[str, ...]:
    """Names of the parameters that differ.

    Raises:
        MelboError: One of them has no counterpart in the base or is quantised, or none differ.
    """
    own, theirs = (dict(one.model.named_parameters()) for one in (lm, base))
    found = []
    for name in own:
        path, _, _ = name.rpartition(".")
        if name not in theirs:
            raise MelboError(
                f"{lm.name} has weights {name} that {base.name} has not: merge its adapter first"
            )
        require_plain(lm.model.get_submodule(path), own[name], name)
        require_plain(base.model.get_submodule(path), theirs[name], name)
        ours, other = read(lm.model, name), read(base.model, name)
        if ours.shape != other.shape:
            shapes = f"{tuple(ours.shape)} and {tuple(other.shape)}"
            raise MelboError(f"{name} has shapes {shapes} in {lm.name} and {base.name}")
        if not torch.equal(ours, other.to(ours)):
            found.append(name)
    if not found:
        raise MelboError(
            f"{lm.name} and {base.name} have the same weights: nothing in them tells what was tuned"
        )
    return tuple(found)


def _beyond(base: LanguageModel, name: str, factor: float, weight: Tensor) -> Tensor:
    """A weight moved on, computed in float32."""
    exact = weight.float()
    return exact + factor * (exact - read(base.model, name).to(exact))
