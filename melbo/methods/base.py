"""What a method is: an immutable configuration that turns a map into factors, directly or by steps."""

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import torch

from melbo.errors import MelboError
from melbo.maps.base import Map
from melbo.maths.transcoder import Factors
from melbo.methods.iterate import Record


@dataclass(frozen=True)
class Method(ABC):
    """A way to find factors.

    Attributes:
        num_factors: m.
        scale: R, the norm of a perturbation; `melbo.calibrate` finds one.
        signed: Whether v and −v are different features of it; not where it goes by a derivative at zero alone, which leaves the sign arbitrary.
    """

    num_factors: int
    scale: float
    signed: ClassVar[bool] = True

    def check(self, map: Map) -> None:
        """Refuse settings that cannot work on this map.

        Raises:
            MelboError: m < 1, or R not positive and finite.
        """
        if self.num_factors < 1:
            raise MelboError(f"num_factors is {self.num_factors}: expected at least 1")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise MelboError(
                f"scale is {self.scale}: expected a positive number; melbo.calibrate finds one"
            )

    def check_room(self, room: int, why: str) -> None:
        """Refuse more factors than there are dimensions for them.

        Raises:
            MelboError: m exceeds ``room``.
        """
        if self.num_factors > room:
            raise MelboError(
                f"num_factors is {self.num_factors}, but {why} there can be at most {room}: ask for fewer, or use Exponential with 'soft'"
            )

    def describe(self) -> dict[str, Any]:
        """Name and settings, JSON-able."""
        return {"name": type(self).__name__, **asdict(self)}

    def identity(self) -> dict[str, Any]:
        """Name and the settings that differ from their defaults, R left out, JSON-able."""
        defaults = {f.name: f.default for f in fields(self)}
        changed = {k: v for k, v in asdict(self).items() if k != "scale" and v != defaults[k]}
        return {"name": type(self).__name__, **changed}


class Direct(Method):
    """A method with nothing to iterate over."""

    @abstractmethod
    def solve(self, map: Map, generator: torch.Generator) -> Factors:
        """The factors of ``map``."""


class Iterative(Method):
    """A method that improves its directions sweep by sweep; `melbo.iterate` owns the loop."""

    tol: float

    @property
    @abstractmethod
    def max_steps(self) -> int:
        """Steps at most."""

    def check(self, map: Map) -> None:
        """See `Method.check`; also max_steps ≥ 1 and tol ≥ 0."""
        super().check(map)
        if self.max_steps < 1 or not self.tol >= 0:
            raise MelboError(
                f"got max_steps={self.max_steps} and tol={self.tol}: expected at least 1 and at least 0"
            )

    @abstractmethod
    def init(self, map: Map, generator: torch.Generator) -> Any:
        """Where to start."""

    @abstractmethod
    def step(self, map: Map, state: Any) -> tuple[Any, Record]:
        """One sweep: the next state, and the measures ``objective``, ``explained`` and ``change``.

        The state's ``found`` holds the factors that the sweep evaluated, for when it turns out to be the last good one.
        """

    @abstractmethod
    def finish(self, map: Map, state: Any) -> Factors:
        """The factors of a state, output directions and strengths computed afresh."""
