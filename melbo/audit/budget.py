"""Budget of an audit in tokens, and the rule by which it is split.

A token counts once for each time that the whole model reads or writes it: a reply counts when it is
written and again when its likelihood is read, a backward pass counts as one more (weights get no
gradient), and a pass through some of the blocks counts by their share. A tenth of the budget goes
to ordinary replies (more where it would buy none), half to the elicitors, and what they leave to
proving what they brought out.
Elicitors take turns: each may spend an equal part of what is left for those that have not been, so
that what one leaves or overspends is shared by those after it.
"""

import math
from dataclasses import dataclass

from melbo.errors import MelboError
from melbo.models.text.prompts import Prompts

#: Tokens of an audit unless told otherwise.
TOKENS = 250_000
#: Share of the budget of ordinary replies and of elicitors, and the least share of the proof.
ORDINARY, ELICITED, PROVED = 0.1, 0.5, 0.25
#: Fewest candidates of an elicitor, and fewest ordinary replies drawn to a prompt beside the greedy
#: one, that say anything.
LEAST_CANDIDATES, LEAST_ORDINARY = 8, 1
#: Prompts that a candidate is tried on. Candidates take turns at them, so that many prompts are
#: screened by many candidates.
TURN = 6


@dataclass(frozen=True)
class Costs:
    """Tokens that replies to a set of prompts take.

    Attributes:
        prompts: Tokens of all prompts.
        number: Number of prompts.
        length: Length of a reply at most.
        judges: Number of models that read each reply again.
    """

    prompts: int
    number: int
    length: int
    judges: int

    @classmethod
    def of(cls, prompts: Prompts, length: int, judges: int) -> "Costs":
        """Costs of replies to these prompts.

        Args:
            prompts: The prompts.
            length: Length of a reply at most.
            judges: Number of models that read each reply again.
        """
        return cls(sum(map(len, prompts.tokens)), len(prompts), length, judges)

    @property
    def everywhere(self) -> int:
        """Tokens of replies to all prompts, one each, at most."""
        return self.prompts + self.number * self.length * (1 + self.judges)

    @property
    def a_turn(self) -> float:
        """Tokens of replies to as many of the prompts as a candidate is tried on (`turns`)."""
        return self.everywhere / len(turns(self.number))


def turns(num_prompts: int) -> list[list[int]]:
    """Numbers of the prompts that candidates are tried on, turn by turn (see `turn_of`).

    Every prompt is in one of them.

    Args:
        num_prompts: Number of prompts.
    """
    num = max(1, num_prompts // TURN)
    return [list(range(k, num_prompts, num)) for k in range(num)]


def turn_of(candidate: int, num_turns: int) -> int:
    """Number of the turn that a candidate gets.

    Every round of candidates begins one turn later than the one before. Settings that candidates
    take by turns, such as strengths, would otherwise meet the same prompts in each round.

    Args:
        candidate: Number of the candidate.
        num_turns: Number of turns.
    """
    return (candidate + candidate // num_turns) % num_turns


@dataclass(frozen=True)
class Budget:
    """Tokens of an audit, split.

    Attributes:
        tokens: All of them.
        costs: What the replies to the screening prompts take.
        elicitors: Number of elicitors.
        speakers: Number of models that give ordinary replies.

    Raises:
        MelboError: The tokens are too few for one round.
    """

    tokens: int
    costs: Costs
    elicitors: int
    speakers: int = 1

    def __post_init__(self) -> None:
        """Refuse a budget that is too small for one round.

        Raises:
            MelboError: It is.
        """
        if self.tokens < self.least:
            raise MelboError(
                f"the budget is {self.tokens} tokens, one round of {self.elicitors} elicitors over "
                f"{self.costs.number} prompts takes {self.least}: raise --budget, or give fewer "
                "prompts or shorter replies"
            )

    @property
    def least(self) -> int:
        """Fewest tokens that one round takes."""
        a_round = max(1, self.elicitors) * LEAST_CANDIDATES * self.costs.a_turn / ELICITED
        ordinary = self.speakers * (1 + LEAST_ORDINARY) * self.costs.everywhere
        return math.ceil(max(a_round, ordinary / (1 - ELICITED - PROVED)))

    @property
    def ordinary(self) -> int:
        """Number of ordinary replies drawn to each prompt."""
        return max(LEAST_ORDINARY, int(ORDINARY * self.tokens) // self.costs.everywhere)

    def candidates(self, spent: float, done: int) -> int:
        """Number of candidates that the next elicitor may try, an even one.

        Args:
            spent: Tokens that the elicitors before it spent.
            done: Number of these elicitors.
        """
        share = (ELICITED * self.tokens - spent) / (self.elicitors - done)
        return max(LEAST_CANDIDATES, 2 * (int(share / self.costs.a_turn) // 2))

    def proved(self, spent: float) -> float:
        """Tokens for the proof.

        Args:
            spent: Tokens that were spent before it.
        """
        return max(PROVED * self.tokens, self.tokens - spent)
