"""The feature with the best score, by successive halving on validation prompts (docs/method.md §3).

The winner is reported on test prompts, on which nothing was chosen (docs/method.md §5).
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from melbo.errors import MelboError
from melbo.maths.statistics import interval, mean
from melbo.progress import track
from melbo.records import ResultLog, to_json, write_atomically

#: A candidate, or None for the unsteered model, and a prompt.
Pair = tuple[int | None, int]
#: A function that scores pairs on a set of prompts, ``"validation"`` or ``"test"``. A string in
#: place of a number says why a pair has no score.
Ask = Callable[[str, Sequence[Pair]], Sequence[float | str]]
_LOG, _RESULT = "selection.jsonl", "selection.json"
_GROUP = 128  # pairs that are asked about before their scores are kept


@dataclass(frozen=True)
class Plan:
    """Rounds of successive halving.

    Attributes:
        rounds: For each round the number of its candidates, and of the validation prompts that each
            of them has answered by the end of it.
        test: Number of prompts that the winner, and the unsteered model, answer in the end.
    """

    rounds: tuple[tuple[int, int], ...]
    test: int

    @property
    def completions(self) -> int:
        """Number of completions in all, those of the test included."""
        asked, before = 0, 0
        for candidates, prompts in self.rounds:
            asked += candidates * (prompts - before)
            before = prompts
        return asked + 2 * self.test


def plan(num: int, validation: int, test: int, budget: int) -> Plan:
    """Divide a budget of completions among rounds, about as many in each.

    After each round half of the candidates are left. A round asks each of its candidates prompts
    that it has not answered yet; all candidates answer the same prompts, in the same order.

    Args:
        num: Number of candidates.
        validation: Number of prompts to choose on.
        test: Number of prompts to report on.
        budget: Completions in all.

    Raises:
        MelboError: The budget is too small for every candidate to answer one prompt and for the
            test.
    """
    left = budget - 2 * test
    if left < num:
        raise MelboError(
            f"a budget of {budget} completions is too small: {num} candidates with one prompt each "
            f"and a test of 2 × {test} take {num + 2 * test}"
        )
    rounds: list[tuple[int, int]] = []
    candidates, answered = num, 0
    while answered < validation:
        rounds_left = max(1, math.ceil(math.log2(candidates)))
        more = min(left // rounds_left // candidates, validation - answered)
        if more < 1:
            more = min(1, left // candidates)
        if more < 1:
            break
        left -= more * candidates
        answered += more
        rounds.append((candidates, answered))
        if candidates == 1:
            break
        candidates = -(-candidates // 2)
    return Plan(tuple(rounds), test)


def usual_budget(num: int, validation: int, test: int) -> int:
    """Completions that let all candidates answer a quarter of the prompts, and for the test.

    Args:
        num: Number of candidates.
        validation: Number of prompts to choose on.
        test: Number of prompts to report on.
    """
    return num * max(1, validation // 4) + 2 * test


@dataclass(frozen=True)
class Selection:
    """The winner, and how it did on prompts that it was not chosen on.

    Attributes:
        best: Index of the winner.
        validation: Its mean score on the validation prompts it answered; it won by this number,
            which therefore flatters it.
        test: Its mean score on the test prompts.
        interval: 95 % interval of ``test`` (see `melbo.maths.statistics.interval`).
        unsteered: Mean score of the unsteered model on the test prompts.
        order: Features, best first, by the round they reached and their score there.
        failed: Pairs without a score, each with its ``feature``, ``set``, ``prompt`` and ``why``.
        completions: Number of completions that were asked for.
    """

    best: int
    validation: float
    test: float
    interval: tuple[float, float]
    unsteered: float
    order: tuple[int, ...]
    failed: tuple[dict[str, Any], ...]
    completions: int

    def describe(self) -> dict[str, Any]:
        """All of it, JSON-able."""
        return dict(vars(self))


def select(
    num: int,
    ask: Ask,
    validation: int,
    test: int,
    budget: int,
    folder: str | Path | None = None,
    key: Any = None,
    progress: bool = True,
) -> Selection:
    """Find the best of several candidates.

    Args:
        num: Number of candidates.
        ask: Scores pairs on a set of prompts. A score that is a string or not finite counts as the
            lowest there is, and the search goes on.
        validation: Number of validation prompts.
        test: Number of test prompts.
        budget: Completions in all (see `plan`).
        folder: Folder in which scores are kept as they come; those that are there already are not
            asked for again.
        key: Identity of the scores in the folder (JSON-able); scores with another are refused.
        progress: Whether to draw a bar.

    Raises:
        MelboError: The budget is too small for one round, there are fewer than one validation or
            two test prompts, nothing could be scored, or the folder holds other scores.
    """
    if num < 1 or validation < 1 or test < 2:
        raise MelboError(
            f"got {num} candidates, {validation} validation prompts and {test} test prompts: "
            "expected at least 1, 1 and 2; a score on the prompts it was chosen by flatters"
        )
    rounds = plan(num, validation, test, budget)
    log = _ScoreLog(None if folder is None else Path(folder) / _LOG, key)
    with track(rounds.completions, "completions", progress) as bar:
        order, validated = _halve(num, rounds, log, ask, bar.update)
        finalists: tuple[int | None, ...] = (order[0], None)
        log.ask(ask, "test", [(who, p) for who in finalists for p in range(test)], bar.update)
    steered, unsteered = zip(*log.finals(order[0], test), strict=True)
    found = Selection(
        best=order[0],
        validation=validated,
        test=mean(steered),
        interval=interval(steered),
        unsteered=mean(unsteered),
        order=order,
        failed=tuple(log.failed),
        completions=rounds.completions,
    )
    if folder is not None:
        write_atomically({Path(folder) / _RESULT: to_json(found.describe())})
    return found


def forget(folder: Path) -> None:
    """Remove the scores of an earlier selection from a run folder."""
    for name in (_LOG, _RESULT):
        (folder / name).unlink(missing_ok=True)


def _halve(
    num: int, rounds: Plan, log: "_ScoreLog", ask: Ask, done: Callable[[int], Any]
) -> tuple[tuple[int, ...], float]:
    """Candidates, best first, and the mean score of the best on the prompts it answered."""
    candidates = list(range(num))
    # so that ties are not won by the lowest number
    random.Random(0).shuffle(candidates)
    out: list[int] = []
    best, answered = math.nan, 0
    for number, (_, prompts) in enumerate(rounds.rounds):
        asked = [(c, p) for c in candidates for p in range(answered, prompts)]
        log.ask(ask, "validation", asked, done)
        answered = prompts
        table = log.table("validation", candidates, answered)
        means = {c: mean(scores) for c, scores in table.items()}
        candidates.sort(key=means.__getitem__, reverse=True)
        best = means[candidates[0]]
        keep = rounds.rounds[number + 1][0] if number + 1 < len(rounds.rounds) else 1
        out = candidates[keep:] + out
        candidates = candidates[:keep]
    return (*candidates, *out), best


class _ScoreLog:
    """Scores so far, in memory and on the disk, one a line."""

    def __init__(self, path: Path | None, key: Any) -> None:
        self._log = ResultLog(path)
        self.failed: list[dict[str, Any]] = []
        title = {"of": key}
        if not self._log.rows:
            self._log.add(title)
        if self._log.rows[0] != title:
            raise MelboError(f"{path} holds scores of another selection: remove the file")
        self._known: dict[tuple[str, int | None, int], float] = {
            (r["set"], r["feature"], r["prompt"]): r["score"] for r in self._log.rows[1:]
        }

    def ask(self, ask: Ask, which: str, pairs: Sequence[Pair], done: Callable[[int], Any]) -> None:
        """Ask for the scores of pairs that are not known yet.

        Args:
            ask: Scores pairs.
            which: The set of prompts.
            pairs: The pairs.
            done: Called with numbers of pairs that are known now.
        """
        new = [pair for pair in pairs if (which, *pair) not in self._known]
        done(len(pairs) - len(new))
        for group in (new[i : i + _GROUP] for i in range(0, len(new), _GROUP)):
            for (who, prompt), score in zip(group, ask(which, group), strict=True):
                if isinstance(score, str) or not math.isfinite(score):
                    why = score if isinstance(score, str) else f"the score is {score}"
                    self.failed.append({"feature": who, "set": which, "prompt": prompt, "why": why})
                    continue
                self._known[which, who, prompt] = float(score)
                self._log.add(
                    {"set": which, "feature": who, "prompt": prompt, "score": float(score)}
                )
            done(len(group))

    def table(self, which: str, candidates: Sequence[int], prompts: int) -> dict[int, list[float]]:
        """Scores of each candidate on the first prompts of a set.

        A score that is missing is the lowest of any candidate, so that no failure flatters.

        Args:
            which: The set of prompts.
            candidates: The candidates.
            prompts: Number of prompts.

        Raises:
            MelboError: Nothing could be scored.
        """
        scores = {c: [self._known.get((which, c, p)) for p in range(prompts)] for c in candidates}
        known = [
            score
            for (set_, who, prompt), score in self._known.items()
            if set_ == which and who is not None and prompt < prompts
        ]
        if not known:
            raise MelboError(f"no candidate could be scored {self._look()}")
        return {c: [min(known) if s is None else s for s in row] for c, row in scores.items()}

    def finals(self, best: int, prompts: int) -> list[tuple[float, float]]:
        """Scores of the winner and of the unsteered model on the test prompts that both have.

        Args:
            best: The winner.
            prompts: Number of test prompts.

        Raises:
            MelboError: There is no such prompt.
        """
        pairs = [
            (self._known.get(("test", best, p)), self._known.get(("test", None, p)))
            for p in range(prompts)
        ]
        both = [(b, u) for b, u in pairs if b is not None and u is not None]
        if not both:
            raise MelboError(f"no test prompt could be scored {self._look()}")
        return both

    def _look(self) -> str:
        """The last failure, and what to do about it."""
        return f"({self.failed[-1]['why']}): look at the score function"
