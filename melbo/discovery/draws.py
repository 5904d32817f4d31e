"""Draws at several temperatures: what the model says when it does not say the likeliest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from melbo.discovery.candidates import Edited, pick
from melbo.errors import MelboError
from melbo.features.generate import check_temperature
from melbo.maths.keyed_random import key_of
from melbo.models.language_model import LanguageModel
from melbo.models.next_token import Draw
from melbo.models.text.prompts import Prompts

#: Temperatures of a sweep, each as often as the others.
TEMPERATURES = (0.5, 1.0, 1.5, 2.0)


@dataclass(frozen=True)
class Drawn(Edited):
    """Draws as candidates, each with a temperature and a seed of its own.

    Its reply to a prompt depends on these two and on the prompt's tokens.

    Attributes:
        temperatures: Temperature of each candidate, above 0.
        seeds: Random seed of each candidate.

    Raises:
        MelboError: There are not as many seeds as temperatures, or nothing can be drawn at one.
    """

    temperatures: tuple[float, ...]
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse temperatures at which nothing can be drawn.

        Raises:
            MelboError: See `Drawn`.
        """
        if len(self.seeds) != len(self.temperatures):
            raise MelboError(
                f"got {len(self.temperatures)} temperatures and {len(self.seeds)} seeds: "
                "expected one of each for every candidate"
            )
        for temperature in self.temperatures:
            check_temperature(temperature)
            if temperature == 0:
                raise MelboError("temperature is 0, which is greedy: expected more to draw at")

    @classmethod
    def at(cls, temperatures: Sequence[float], num: int, seed: int) -> "Drawn":
        """Candidates at some temperatures in turn.

        Args:
            temperatures: The temperatures.
            num: Number of candidates.
            seed: Random seed.
        """
        each = tuple(temperatures[i % len(temperatures)] for i in range(num))
        return cls(each, tuple(key_of(seed, i) for i in range(num)))

    def __len__(self) -> int:
        """Number of candidates."""
        return len(self.temperatures)

    def only(self, which: Sequence[int]) -> "Drawn":
        """Some of the candidates."""
        return Drawn(pick(self.temperatures, which), pick(self.seeds, which))

    def edit(self, prompts: Prompts) -> Draw:
        """See `Edited.edit`."""
        keys = tuple(key_of(seed, tokens) for tokens in prompts.tokens for seed in self.seeds)
        return Draw(self.temperatures * len(prompts), keys)

    def alike(self, i: int) -> int:
        """See `Edited.alike`; draws change nothing before the logits."""
        return 0

    def describe(self, i: int) -> dict[str, Any]:
        """See `Candidates.describe`."""
        return {"kind": "draw", "temperature": self.temperatures[i], "seed": self.seeds[i]}


@dataclass(frozen=True)
class Temperature:
    """Elicitor: replies drawn at several temperatures.

    Attributes:
        temperatures: The temperatures, each as often as the others.
    """

    temperatures: tuple[float, ...] = TEMPERATURES
    name: str = "temperature"
    description: str = "replies drawn at several temperatures"

    def candidates(
        self, lm: LanguageModel, prompts: Prompts, num: int, seed: int, progress: bool
    ) -> tuple[Drawn, float]:
        """See `Elicitor.candidates`; nothing has to be found."""
        return Drawn.at(self.temperatures, num, seed), 0.0
