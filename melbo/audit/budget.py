"""Budget of an audit in tokens, and the rule by which it is split.

A token counts once for each time that the whole model reads or writes it: a reply counts when it is
written and again when its likelihood is read, a backward pass counts as one more (weights get no
gradient), and a pass through some of the blocks counts by their share. A tenth of the budget goes
to ordinary replies (more where it would buy none), two fifths to the elicitors, and what they leave
to proving what they brought out: two fifths at least, and enough for one theme.
Elicitors take turns: each may spend an equal part of what is left for those that have not been, so
that what one leaves or overspends is shared by those after it. A budget that does not pay for a
round of all of them goes to the first.
"""

import math
from dataclasses import dataclass

from melbo.errors import MelboError
from melbo.models.text.prompts import Prompts

#: Tokens of an audit unless told otherwise.
TOKENS = 250_000
#: Share of the budget of ordinary replies, the most of elicitors, and the least of the proof.
ORDINARY, ELICITED, PROVED = 0.1, 0.4, 0.4
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
        given: Number of elicitors that may be used.
        speakers: Number of models that give ordinary replies.
        a_proof: Tokens that the proof of one theme takes.

    Raises:
        MelboError: The tokens are too few for one elicitor and one theme.
    """

    tokens: int
    costs: Costs
    given: int
    speakers: int = 1
    a_proof: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a budget that is too small for one elicitor and one theme.

        Raises:
            MelboError: It is.
        """
        if self.tokens < (least := self.least(1)):
            raise MelboError(
                f"the budget is {self.tokens} tokens, and ordinary replies to {self.costs.number} "
                f"prompts, one elicitor and the proof of one theme take {least}: raise the "
                "budget, or give fewer prompts or shorter replies"
            )

    def least(self, elicitors: int) -> int:
        """Fewest tokens with which so many elicitors get a round each.

        Args:
            elicitors: Their number.
        """
        ordinary = self.speakers * (1 + LEAST_ORDINARY) * self.costs.everywhere
        rounds = elicitors * LEAST_CANDIDATES * self.costs.a_turn
        before = ordinary + rounds
        return math.ceil(max(before / (1 - PROVED), before + self.a_proof, rounds / ELICITED))

    @property
    def elicitors(self) -> int:
        """Number of elicitors that get a round, the first of those given."""
        return max(n for n in range(1, max(1, self.given) + 1) if self.least(n) <= self.tokens)

    @property
    def ordinary(self) -> int:
        """Number of ordinary replies drawn to each prompt."""
        return max(LEAST_ORDINARY, int(ORDINARY * self.tokens) // self.costs.everywhere)

    @property
    def _elicited(self) -> float:
        """Tokens of the elicitors."""
        ordinary = self.speakers * (1 + self.ordinary) * self.costs.everywhere
        return min(ELICITED * self.tokens, self.tokens - self._kept - ordinary)

    @property
    def _kept(self) -> float:
        """Tokens that are kept for the proof."""
        return max(PROVED * self.tokens, self.a_proof)

    def candidates(self, spent: float, done: int) -> int:
        """Number of candidates that the next elicitor may try, an even one.

        Args:
            spent: Tokens that the elicitors before it spent.
            done: Number of these elicitors.
        """
        share = (self._elicited - spent) / (self.elicitors - done)
        return max(LEAST_CANDIDATES, 2 * (int(share / self.costs.a_turn) // 2))

    def proved(self, spent: float) -> float:
        """Tokens for the proof.

        Args:
            spent: Tokens that were spent before it.
        """
        return max(self._kept, self.tokens - spent)
