"""The face that all methods share: an immutable configuration that turns a map into factors."""

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
    """An algorithm that finds factors, with its settings.

    Attributes:
        num_factors: m, the number of factors.
        scale: R, the norm of a perturbation; `melbo.fit` calibrates it if it is left out.
        signed: Whether v and −v are different features. A method that uses derivatives at zero
            alone leaves the sign arbitrary.
    """

    num_factors: int
    # None only until `melbo.fit` has put a number there, which a method at work can rely on
    scale: float = None  # type: ignore[assignment]
    signed: ClassVar[bool] = True

    def check(self, map: Map) -> None:
        """Refuse settings that cannot work on this map.

        Raises:
            MelboError: m < 1, or R is not positive and finite.
        """
        if self.num_factors < 1:
            raise MelboError(f"num_factors is {self.num_factors}: expected at least 1")
        if self.scale is None or not (math.isfinite(self.scale) and self.scale > 0):
            raise MelboError(
                f"scale is {self.scale}: expected a positive number; melbo.calibrate finds one"
            )

    def check_room(self, room: int, why: str) -> None:
        """Refuse more factors than there is room for.

        Args:
            room: Largest m.
            why: The reason, as the first half of "… there can be at most 12".

        Raises:
            MelboError: m exceeds ``room``.
        """
        if self.num_factors > room:
            raise MelboError(
                f"num_factors is {self.num_factors}, but {why} there can be at most {room}: "
                "ask for fewer, or use Exponential with 'soft'"
            )

    def describe(self) -> dict[str, Any]:
        """Name and settings, JSON-able."""
        return {"name": type(self).__name__, **asdict(self)}

    def identity(self) -> dict[str, Any]:
        """Name and the settings that differ from their defaults, without R, JSON-able.

        A new setting with a default leaves it as it is.
        """
        defaults = {f.name: f.default for f in fields(self)}
        changed = {k: v for k, v in asdict(self).items() if k != "scale" and v != defaults[k]}
        return {"name": type(self).__name__, **changed}


class Direct(Method):
    """A method that computes its factors at once."""

    @abstractmethod
    def solve(self, map: Map, generator: torch.Generator) -> Factors:
        """Factors of the map.

        Args:
            map: Δ.
            generator: Source of randomness.
        """


class Iterative(Method):
    """A method that improves its directions sweep by sweep; `melbo.methods.iterate` loops."""

    tol: float

    @property
    @abstractmethod
    def max_steps(self) -> int:
        """Largest number of steps."""

    def check(self, map: Map) -> None:
        """Refuse settings that cannot work on this map (see `Method.check`).

        Raises:
            MelboError: max_steps < 1 or tol < 0.
        """
        super().check(map)
        if self.max_steps < 1 or not self.tol >= 0:
            raise MelboError(
                f"got max_steps={self.max_steps} and tol={self.tol}: "
                "expected at least 1 and at least 0"
            )

    @abstractmethod
    def init(self, map: Map, generator: torch.Generator) -> Any:
        """State before the first step.

        Args:
            map: Δ.
            generator: Source of randomness.
        """

    @abstractmethod
    def step(self, map: Map, state: Any) -> tuple[Any, Record]:
        """One sweep over the factors.

        Args:
            map: Δ.
            state: State before the sweep.

        Returns:
            The next state, and the measures ``objective``, ``explained`` and ``change``. The
            state's ``found`` holds the factors that the sweep evaluated; they are the result if
            `finish` cannot compute fresh ones.
        """

    @abstractmethod
    def finish(self, map: Map, state: Any) -> Factors:
        """Factors of a state, with target directions and strengths computed afresh.

        Args:
            map: Δ.
            state: State after the last good step.
        """
