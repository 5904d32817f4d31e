"""Select: the feature with the best score, by successive halving on validation prompts, reported on test prompts (METHOD §3, §5)."""

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

Ask = Callable[[str, Sequence[tuple[int | None, int]]], Sequence[float | str]]
_LOG, _RESULT = "selection.jsonl", "selection.json"
_AT_ONCE = 128  # pairs that are asked before their scores are kept


@dataclass(frozen=True)
class Plan:
    """Rounds of successive halving: ``rounds[r]`` is (candidates, validation prompts that each of them has answered by the end of it).

    Attributes:
        rounds: As said.
        test: Prompts that the winner, and the unsteered model, answer in the end.
    """

    rounds: tuple[tuple[int, int], ...]
    test: int

    @property
    def completions(self) -> int:
        """All of them, those of the test included."""
        asked, before = 0, 0
        for candidates, prompts in self.rounds:
            asked += candidates * (prompts - before)
            before = prompts
        return asked + 2 * self.test


def plan(num: int, validation: int, test: int, budget: int) -> Plan:
    """Spend ``budget`` completions on ``num`` candidates, about as many in each round, and half of the candidates after each.

    A round asks each of its candidates prompts it has not answered yet; all candidates answer the same prompts, in the same order.

    Args:
        num: Candidates.
        validation: Prompts to choose on.
        test: Prompts to report on.
        budget: Completions in all.

    Raises:
        MelboError: A budget too small for every candidate to answer one prompt and the winner the test.
    """
    left = budget - 2 * test
    if left < num:
        raise MelboError(
            f"a budget of {budget} completions is too small: {num} candidates with one prompt each and a test of 2 × {test} take {num + 2 * test}"
        )
    rounds: list[tuple[int, int]] = []
    candidates, answered = num, 0
    while answered < validation:
        to_come = max(1, math.ceil(math.log2(candidates)))
        more = min(left // to_come // candidates, validation - answered)
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


@dataclass(frozen=True)
class Selection:
    """The winner, and how it did where it was not chosen.

    Attributes:
        best: Which feature.
        validation: Its mean score on the validation prompts it answered: it won by this number, so it flatters.
        test: Its mean score on the test prompts.
        interval: 95 % for ``test``: Wilson's if all scores lie in 0 … 1 (exact for yes or no, cautious in between), the normal one otherwise.
        unsteered: Mean score of the unsteered model on the test prompts.
        order: Features, best first, by the round they reached and their score there.
        failed: What could not be scored: feature, set, prompt and why.
        completions: How many were asked for.
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
    """Find the best of ``num`` candidates.

    Args:
        num: Candidates, 0 … num − 1.
        ask: Scores pairs (candidate, prompt) of a set, ``"validation"`` or ``"test"``; candidate None is the unsteered model. A string in
            the place of a number, or one that is not finite, says why a pair has no score; it counts as the lowest there is, and the rest goes on.
        validation: Number of validation prompts.
        test: Number of test prompts.
        budget: Completions in all (see `plan`).
        folder: Where scores are kept as they come; what is there already is not asked again.
        key: What the scores in the folder belong to (JSON-able); a folder with those of another is refused.
        progress: Draw a bar.

    Raises:
        MelboError: A budget too small for one round, fewer than one validation or two test prompts, nothing that could be scored, or a folder with
            other scores.
    """
    if num < 1 or validation < 1 or test < 2:
        raise MelboError(
            f"got {num} candidates, {validation} validation prompts and {test} test prompts: expected at least 1, 1 and 2; "
            "a score on the prompts it was chosen by flatters"
        )
    rounds = plan(num, validation, test, budget)
    log = _Log(None if folder is None else Path(folder) / _LOG, key)
    candidates = list(range(num))
    random.Random(0).shuffle(candidates)  # so that ties are not won by place
    order: list[int] = []
    answered = 0
    with track(rounds.completions, "completions", progress) as bar:
        for number, (_, prompts) in enumerate(rounds.rounds):
            log.ask(
                ask,
                "validation",
                [(c, p) for c in candidates for p in range(answered, prompts)],
                bar.update,
            )
            answered = prompts
            means = {
                c: mean(scores)
                for c, scores in log.table("validation", candidates, answered).items()
            }
            candidates.sort(key=means.__getitem__, reverse=True)
            keep = rounds.rounds[number + 1][0] if number + 1 < len(rounds.rounds) else 1
            order = candidates[keep:] + order
            candidates = candidates[:keep]
        best = candidates[0]
        validated = means[best]
        log.ask(ask, "test", [(who, p) for who in (best, None) for p in range(test)], bar.update)
    told = log.both(best, test)
    found = Selection(
        best, validated, mean([b for b, _ in told]), interval([b for b, _ in told]), mean([u for _, u in told]), (best, *order), tuple(log.failed),
        rounds.completions,
    )  # fmt: skip
    if folder is not None:
        write_atomically({Path(folder) / _RESULT: to_json(found.describe())})
    return found


def forget(folder: Path) -> None:
    """Remove the scores of an earlier selection."""
    for name in (_LOG, _RESULT):
        (folder / name).unlink(missing_ok=True)


class _Log:
    """Scores so far, in memory and on the disk, a line each."""

    def __init__(self, path: Path | None, key: Any) -> None:
        self.rows = ResultLog(path)
        self.failed: list[dict[str, Any]] = []
        head = {"of": key}
        if not self.rows.rows:
            self.rows.add(head)
        if self.rows.rows[0] != head:
            raise MelboError(f"{path} holds scores of another selection: --force starts anew")
        self.known: dict[tuple[str, int | None, int], float] = {
            (r["set"], r["feature"], r["prompt"]): r["score"] for r in self.rows.rows[1:]
        }

    def ask(
        self,
        ask: Ask,
        which: str,
        pairs: Sequence[tuple[int | None, int]],
        done: Callable[[int], Any],
    ) -> None:
        """Fill in what is not known of ``pairs``."""
        new = [pair for pair in pairs if (which, *pair) not in self.known]
        done(len(pairs) - len(new))
        for some in (new[i : i + _AT_ONCE] for i in range(0, len(new), _AT_ONCE)):
            for (who, prompt), score in zip(some, ask(which, some), strict=True):
                if isinstance(score, str) or not math.isfinite(score):
                    why = score if isinstance(score, str) else f"the score is {score}"
                    self.failed.append({"feature": who, "set": which, "prompt": prompt, "why": why})
                else:
                    self.known[which, who, prompt] = float(score)
                    self.rows.add(
                        {"set": which, "feature": who, "prompt": prompt, "score": float(score)}
                    )
            done(len(some))

    def table(self, which: str, candidates: Sequence[int], prompts: int) -> dict[int, list[float]]:
        """Scores of each candidate on the first prompts; where there is none, the lowest of anybody, so that no failure flatters."""
        found = {c: [self.known.get((which, c, p)) for p in range(prompts)] for c in candidates}
        known = [
            s for (w, c, p), s in self.known.items() if w == which and c is not None and p < prompts
        ]
        if not known:
            raise MelboError(
                f"no candidate could be scored ({self.failed[-1]['why']}): look at the score function"
            )
        return {c: [min(known) if s is None else s for s in scores] for c, scores in found.items()}

    def both(self, best: int, prompts: int) -> list[tuple[float, float]]:
        """Scores of the winner and of the unsteered model on the test prompts that both could be scored on."""
        pairs = [
            (self.known.get(("test", best, p)), self.known.get(("test", None, p)))
            for p in range(prompts)
        ]
        found = [(b, u) for b, u in pairs if b is not None and u is not None]
        if not found:
            raise MelboError(
                f"no test prompt could be scored ({self.failed[-1]['why']}): look at the score function"
            )
        return found
