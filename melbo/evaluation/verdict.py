"""Verdicts on a ranking: how many features beat the best random one, score by score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Scores that are judged by, each with its name and what a high value means.
JUDGED_BY = {
    "novel": ("novel yet fluent", "new, in words that the model finds sayable: go by this one"),
    "novelty": ("novelty", "other words than the model's own; gibberish scores high too"),
    "kl": ("KL", "another first token than the model's own; gibberish scores high too"),
    "contrast": ("contrast", "begins with A rather than with B; gibberish may too"),
}


@dataclass(frozen=True)
class Verdict:
    """Features beside random vectors, on held-out prompts, by one score.

    Attributes:
        score: Key of the score, one of `JUDGED_BY`.
        name: Its name.
        meaning: What a high value means.
        best_control: Score of the best active random vector; None where none is active.
        above: Number of active features above that.
        active: Number of active features.
        broken_above: Number of broken features above that: gibberish, which `above` leaves out.
        broken: Number of broken features.
        by_chance: Number of active features above that if features were random too.
    """

    score: str
    name: str
    meaning: str
    best_control: float | None
    above: int
    active: int
    broken_above: int
    broken: int
    by_chance: float | None


def verdicts(ranking: Mapping[str, Any]) -> list[Verdict]:
    """Verdicts by all scores that a ranking has, the one to go by first.

    Args:
        ranking: The ranking, as JSON (`melbo.Ranking.describe`, or ``ranking.json``).
    """
    rows = ranking["features"]
    known = next(iter([*ranking["controls"], *rows]))["held_out"]
    return [
        _verdict(score, rows, ranking["controls"])
        for score in JUDGED_BY
        if known.get(score) is not None
    ]


def _verdict(score: str, rows: Sequence[Any], controls: Sequence[Any]) -> Verdict:
    """Verdict by one score."""
    active, broken, rivals = (
        [row["held_out"][score] for row in some if row["flag"] == flag]
        for some, flag in ((rows, "active"), (rows, "broken"), (controls, "active"))
    )
    best = max(rivals, default=None)
    return Verdict(
        score,
        *JUDGED_BY[score],
        best,
        0 if best is None else sum(value > best for value in active),
        len(active),
        0 if best is None else sum(value > best for value in broken),
        len(broken),
        None if best is None else len(active) / (len(rivals) + 1),
    )
