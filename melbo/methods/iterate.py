"""The one driver of all iterative methods: loop, tolerance, finiteness, history, interrupts."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from statistics import fmean
from typing import Generic, TypeVar

from melbo.progress import track

State = TypeVar("State")
Record = dict[str, float]


class Status(Enum):
    """End of a fit; each status says what to do next."""

    DIRECT = "computed directly, nothing to iterate"
    CONVERGED = "converged: directions or explained amount stopped moving"
    MAX_STEPS = (
        "took all its steps while still moving: raise max_steps (steps of melbo) "
        "if the explained amount is still growing"
    )
    NON_FINITE = (
        "stopped at the last finite sweep: lower the scale, set normalise_target "
        "or load the model in float32"
    )
    INTERRUPTED = "interrupted: this is the last finished sweep; fit again for the rest"

    @property
    def remedy(self) -> str:
        """End of the fit and what to do next, in words."""
        return self.value


# growth of the explained amount over a third of the sweeps from which on more of them are advised;
# it goes up and down by less from sweep to sweep for as long as one looks
_GROWS = 0.1


def advice(status: Status, history: Sequence[Record]) -> str:
    """End of a fit and what to do next, in words; whether more steps may help goes by its history.

    Args:
        status: End of the fit.
        history: Records of its steps.
    """
    third = len(history) // 3
    if status is not Status.MAX_STEPS or third == 0:
        return status.remedy
    before, last = (
        fmean(record["explained"] for record in some)
        for some in (history[-2 * third : -third], history[-third:])
    )
    growth = last / before - 1 if before > 0 else 0.0
    if growth > _GROWS:
        return (
            f"took all its steps, and the explained amount was still growing ({growth:+.0%} over "
            "the last third): raise max_steps (steps of melbo)"
        )
    return (
        "took all its steps: directions still turn, but the explained amount is about level "
        f"({growth:+.0%} over the last third); more steps may gain or lose as much"
    )


@dataclass(frozen=True)
class Iteration(Generic[State]):
    """Outcome of a loop.

    Attributes:
        state: State after the last finished step.
        status: Reason why the loop ended.
        history: One record for each finished step.
    """

    state: State
    status: Status
    history: list[Record]


def iterate(
    step: Callable[[State], tuple[State, Record]],
    state: State,
    *,
    max_steps: int,
    tol: float,
    callback: Callable[[int, Record], None] | None = None,
    progress: bool = True,
) -> Iteration[State]:
    """Take steps until the state stands still.

    A step whose measures are not finite is thrown away. Ctrl-C ends the loop with the last finished
    step.

    Args:
        step: One sweep: gives the next state and its measures, among them ``change`` (how far the
            directions moved, 0 if not at all) and ``explained`` (2αᵀb − αᵀKα).
        state: State to start from.
        max_steps: Largest number of steps.
        tol: Stop when ``change`` falls below it, or when the relative change of ``explained`` does
            so twice running.
        callback: Called after each step with the number of steps taken and the record.
        progress: Draw a bar.

    Raises:
        KeyboardInterrupt: Ctrl-C before the first step has finished.
    """
    history: list[Record] = []
    status = Status.MAX_STEPS
    # the bar is inside: a finished step is kept whenever the interrupt comes
    try:
        with track(max_steps, "sweeps", progress) as bar:
            for _ in range(max_steps):
                start = time.perf_counter()
                proposal, record = step(state)
                if not all(math.isfinite(x) for x in record.values()):
                    status = Status.NON_FINITE
                    break
                history.append({**record, "seconds": time.perf_counter() - start})
                state = proposal
                bar.set_postfix({k: f"{v:.4g}" for k, v in record.items()}, refresh=False)
                bar.update()
                if callback is not None:
                    callback(len(history), history[-1])
                if record["change"] < tol or _flat([h["explained"] for h in history[-3:]], tol):
                    status = Status.CONVERGED
                    break
    except KeyboardInterrupt:
        if not history:
            raise
        status = Status.INTERRUPTED
    return Iteration(state, status, history)


def _flat(explained: list[float], tol: float) -> bool:
    """Tell whether the explained amount stood still for two steps; in one it may be turning."""
    return len(explained) == 3 and all(abs(a - b) < tol * abs(b) for a, b in pairwise(explained))
