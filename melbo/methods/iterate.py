"""The one driver of every iterative method: loop, tolerance, non-finite check, history, interrupts."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Generic, TypeVar

from melbo.progress import track

State = TypeVar("State")
Record = dict[str, float]


class Status(Enum):
    """How a fit ended; the value is what to make of it."""

    DIRECT = "computed directly, nothing to iterate"
    CONVERGED = "converged: directions or explained amount stopped moving"
    MAX_STEPS = "took all its steps while still moving: raise max_steps (steps of melbo) if the explained amount is still growing"
    NON_FINITE = "stopped at the last finite sweep: lower the scale, set normalise_target or load the model in float32"
    INTERRUPTED = "interrupted: this is the last finished sweep; fit again for the rest"

    @property
    def remedy(self) -> str:
        """What to make of it, in words."""
        return self.value


@dataclass(frozen=True)
class Iterated(Generic[State]):
    """Where the loop ended and how it went: one record a finished step."""

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
) -> Iterated[State]:
    """Take steps until the state stands still.

    Args:
        step: One sweep: the next state and its measures, among them ``change`` (how far the directions moved, 0 if not at all) and
            ``explained`` (bᵀK⁻¹b).
        state: Where to start.
        max_steps: Steps at most.
        tol: Stop when ``change`` falls below it, or the relative change of ``explained`` does so twice running.
        callback: Called with the number of steps taken and the record after each.
        progress: Draw a bar.

    A step whose measures are not finite is thrown away. Ctrl-C ends the loop with the last finished step; before the first it is passed on.
    """
    history: list[Record] = []
    status = Status.MAX_STEPS
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
    except KeyboardInterrupt:  # whenever it comes, a finished step is kept
        if not history:
            raise
        status = Status.INTERRUPTED
    return Iterated(state, status, history)


def _flat(explained: list[float], tol: float) -> bool:
    """Whether the explained amount stood still over two steps running; over one it may just be turning."""
    return len(explained) == 3 and all(abs(a - b) < tol * abs(b) for a, b in pairwise(explained))
