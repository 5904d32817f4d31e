"""Superposition: interference of many directions in few dimensions, its floor, what it allows."""

import math

from torch import Tensor

from melbo.dictionary.geometry import orthogonality_penalty, require_directions
from melbo.errors import MelboError
from melbo.maths.linalg import unit


def interference(d: int, active: int = 1) -> float:
    """Root mean square of what active random directions add along another, √(active / d).

    With one active, it is the root mean square of the inner product of two random unit vectors.

    Args:
        d: Width.
        active: Number of directions that are active at once, each with strength 1.

    Raises:
        MelboError: The width is less than 1, or the number negative.
    """
    if d < 1 or active < 0:
        raise MelboError(
            f"got {active} active directions of width {d}: expected 0 or more, of width 1 or more"
        )
    return math.sqrt(active / d)


def measured_interference(W: Tensor) -> float:
    """Root mean square of the cosines of pairs of rows.

    Args:
        W: Directions ``[m, d]``, whatever their norms.

    Raises:
        MelboError: The rows are not two or more finite directions.
    """
    require_directions(W)
    return math.sqrt(max(0.0, orthogonality_penalty(unit(W.detach().double())).item()))


def welch_floor(m: int, d: int) -> float:
    """Smallest mean of ⟨w_i, w_j⟩² over pairs of m unit rows of width d (Welch 1974).

    It is (m − d) / (d(m − 1)), or 0 if there is room for orthonormal rows.

    Args:
        m: Number of directions.
        d: Width.

    Raises:
        MelboError: There are fewer than two directions, or the width is less than 1.
    """
    _check_sizes(m, d)
    return max(0.0, (m - d) / (d * (m - 1)))


def capacity(d: int, level: float = 1.0) -> float:
    """Number of active random directions whose `interference` is at a level, level²·d.

    At level 1, interference is as large as the strength of the directions themselves: fewer than d
    can be active at once and be told apart.

    Args:
        d: Width.
        level: Root mean square of the interference.

    Raises:
        MelboError: The width is less than 1, or the level is negative or not finite.
    """
    if d < 1 or not 0 <= level < float("inf"):
        raise MelboError(
            f"got a level of {level} at width {d}: expected 0 or more, at width 1 or more"
        )
    return level**2 * d


def worst_case_capacity(m: int, d: int) -> float:
    """Number of active directions that is safe whichever they are, d / (8 ln m).

    By Johnson–Lindenstrauss m directions exist whose inner products are all below √(8 ln m / d).
    That many active ones can add up to 1 if all interfere with the same sign.

    Args:
        m: Number of directions.
        d: Width.

    Raises:
        MelboError: There are fewer than two directions, or the width is less than 1.
    """
    _check_sizes(m, d)
    return d / (8 * math.log(m))


def _check_sizes(m: int, d: int) -> None:
    """Refuse sizes that no set of pairs has.

    Raises:
        MelboError: There are fewer than two directions, or the width is less than 1.
    """
    if m < 2 or d < 1:
        raise MelboError(f"got {m} directions of width {d}: expected two or more, of width 1 or up")
