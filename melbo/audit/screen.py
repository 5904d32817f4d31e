"""Screening: ordinary replies, and those that elicitors bring out, to the same prompts."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from tqdm.auto import tqdm

from melbo.audit.budget import Budget, turn_of, turns
from melbo.audit.replies import Reply, judged
from melbo.discovery.candidates import Candidates, Edited, Elicitor, some_prompts
from melbo.discovery.draws import Drawn
from melbo.errors import MelboError
from melbo.features.generate import Completion, Completions
from melbo.models.edits import Edit, EditSequence
from melbo.models.language_model import LanguageModel
from melbo.models.text.prompts import Prompts
from melbo.records import ResultLog, Row

#: Name of the elicitor that elicits nothing, which counts where there is a base to compare with.
BY_ITSELF = "by itself"
# candidates whose replies are kept by one write, so that little is lost when an audit is cut off
_TOGETHER = 32


class Unsteered(Edited):
    """The model by itself, as the one candidate."""

    def __len__(self) -> int:
        """Number of candidates."""
        return 1

    def only(self, which: Sequence[int]) -> "Unsteered":
        """See `Candidates.only`."""
        return self

    def edit(self, prompts: Prompts) -> Edit:
        """See `Edited.edit`."""
        return EditSequence(())

    def describe(self, i: int) -> dict[str, Any]:
        """See `Candidates.describe`."""
        return {"kind": BY_ITSELF}


class Source:
    """Candidates under the name of their elicitor, found when they are first needed.

    Args:
        name: Name of the elicitor.
        find: Finds the candidates, and says how many tokens that took.
    """

    def __init__(self, name: str, find: Callable[[], tuple[Candidates, float]]) -> None:
        self.name, self._find = name, find

    @cached_property
    def found(self) -> tuple[Candidates, float]:
        """The candidates, and the tokens that finding them took.

        Raises:
            MelboError: The elicitor refuses the model.
        """
        return self._find()

    @property
    def candidates(self) -> Candidates:
        """The candidates."""
        return self.found[0]


@dataclass
class Screening:
    """Replies to one set of prompts, written to a log as they come.

    Attributes:
        lm: The model.
        reference: Model that likelihoods are compared with, or None.
        log: Log of the audit; what it holds already is not done again.
        max_new_tokens: Length of a reply at most.
        bar: Bar that is moved on by the tokens of each row.
    """

    lm: LanguageModel
    reference: LanguageModel | None
    log: ResultLog
    max_new_tokens: int
    bar: tqdm

    def add(self, row: Row) -> None:
        """Write a row, and move the bar on by its tokens.

        Args:
            row: The row, with its ``tokens``.
        """
        self.log.add(row)
        self.bar.update(round(row["tokens"]))

    def ordinary(
        self, stage: str, prompts: Prompts, draws: int, seed: int, speaker: LanguageModel
    ) -> list[Reply]:
        """Greedy replies of a model, and replies drawn at temperature 1.

        Args:
            stage: Name of the stage in the log.
            prompts: The prompts.
            draws: Number of replies drawn to each.
            seed: Random seed.
            speaker: The model itself, or its base.
        """

        def table() -> Completions:
            drawn = Drawn.at((1.0,), max(draws, 1), seed)
            said = drawn.replies(
                speaker, prompts, self.max_new_tokens, unsteered=True, progress=False
            )
            return said if draws else Completions(tuple(said.of("unsteered")))

        return self._kept({"stage": stage, "elicitor": "ordinary"}, prompts, table)

    def candidates(
        self,
        stage: str,
        source: Source,
        which: Sequence[int],
        prompts: Prompts,
        speaker: LanguageModel | None = None,
    ) -> Iterator[Reply]:
        """Replies of some candidates to all prompts.

        Args:
            stage: Name of the stage in the log.
            source: The elicitor.
            which: Numbers of its candidates.
            prompts: The prompts.
            speaker: The model itself if left out; its base can be made to begin alike.

        Yields:
            The replies, candidate by candidate of each write.

        Raises:
            MelboError: The elicitor refuses the model.
        """
        for start in range(0, len(which), _TOGETHER):
            some = list(which[start : start + _TOGETHER])
            case = {"stage": stage, "elicitor": source.name, "candidates": some}

            def table(some: list[int] = some) -> Completions:
                said = source.candidates.only(some).replies(
                    speaker or self.lm,
                    prompts,
                    self.max_new_tokens,
                    unsteered=False,
                    progress=False,
                )
                return _renumbered(said, some)

            yield from self._kept(case, prompts, table)

    def _kept(
        self,
        case: Row,
        prompts: Prompts,
        table: Callable[[], Completions],
    ) -> list[Reply]:
        """Replies of a case, from the log or made and written to it."""
        rows = self.log.of(case)
        if not rows:
            start = time.perf_counter()
            said = list(table())
            replies = judged(self.lm, self.reference, prompts, case["elicitor"], said, False)
            judges = 1 + (self.reference is not None)
            row = {
                **case,
                "tokens": sum(_read(prompts, c, judges) for c in said),
                "seconds": time.perf_counter() - start,
                "replies": [r.describe() for r in replies],
            }
            self.add(row)
            rows = [row]
        return [Reply.from_description(saved) for saved in rows[0]["replies"]]


def elicit(
    screening: Screening,
    elicitors: Sequence[Elicitor],
    prompts: Prompts,
    budget: Budget,
    seed: int,
) -> tuple[dict[str, Source], list[Reply]]:
    """Let each elicitor spend its part of the budget on the screening prompts.

    One that fails costs its part: the log says why, and the others go on. It also names those that
    the budget does not pay for.

    Args:
        screening: The screening.
        elicitors: The elicitors, in this order.
        prompts: The screening prompts.
        budget: The budget.
        seed: Random seed.

    Returns:
        Elicitors that did not fail, by name, and what they brought out.
    """
    sources: dict[str, Source] = {}
    replies: list[Reply] = []
    spent = 0.0
    log = screening.log
    for done, elicitor in enumerate(elicitors[: budget.elicitors]):
        case = {"stage": "plan", "elicitor": elicitor.name}
        if not log.of(case):
            log.add({**case, "candidates": budget.candidates(spent, done)})
        num = log.of(case)[0]["candidates"]
        find = partial(elicitor.candidates, screening.lm, prompts, num, seed, False)
        source = Source(elicitor.name, find)
        try:
            replies += _elicited(screening, source, prompts)
            sources[elicitor.name] = source
        except Exception as err:  # the user's elicitors among them, which may fail in any way
            _note_failure(log, elicitor.name, err)
        spent += spent_by(log, elicitor.name)
    for n, elicitor in enumerate(elicitors[budget.elicitors :], budget.elicitors + 1):
        if not log.of({"stage": "failure", "elicitor": elicitor.name}):
            least = budget.least(n)
            _note_failure(log, elicitor.name, MelboError(f"left out: takes a budget of {least:,}"))
    return sources, replies


def _elicited(screening: Screening, source: Source, prompts: Prompts) -> list[Reply]:
    """Replies of the candidates of an elicitor, each to the screening prompts of its turn."""
    log, name = screening.log, source.name
    case = {"stage": "find", "elicitor": name}
    if not log.of(case):
        start = time.perf_counter()
        candidates, tokens = source.found
        seconds = time.perf_counter() - start
        screening.add({**case, "tokens": tokens, "seconds": seconds, "found": len(candidates)})
    num, each = log.of(case)[0]["found"], turns(len(prompts))
    replies: list[Reply] = []
    for k, some in enumerate(each):
        which = [i for i in range(num) if turn_of(i, len(each)) == k]
        said = screening.candidates("screen", source, which, some_prompts(prompts, some))
        replies += [replace(reply, prompt=some[reply.prompt]) for reply in said]
    return replies


def _note_failure(log: ResultLog, name: str, err: Exception) -> None:
    said = str(err) if isinstance(err, MelboError) else f"{type(err).__name__}: {err}"
    log.add({"stage": "failure", "elicitor": name, "error": said})


def spent_by(log: ResultLog, name: str) -> float:
    """Tokens that an elicitor has spent on the screening prompts.

    Args:
        log: Log of the audit.
        name: Name of the elicitor.
    """
    rows = [r for stage in ("find", "screen") for r in log.of({"stage": stage, "elicitor": name})]
    return float(sum(r["tokens"] for r in rows))


def _renumbered(said: Completions, which: Sequence[int]) -> Completions:
    """Replies of some candidates, with the numbers that these have among all."""
    return Completions(tuple(replace(c, feature=which[c.feature or 0]) for c in said))


def _read(prompts: Prompts, c: Completion, judges: int) -> int:
    """Tokens that are read and written for a reply."""
    return len(prompts.tokens[c.prompt]) + len(c.tokens) * (1 + judges)


def described(about: dict[str, Any]) -> str:
    """Account of a candidate in words.

    Args:
        about: See `Candidates.describe`.
    """
    kind = about["kind"]
    if kind in ("opening", "continuation"):
        return f"{kind} {about['text']!r}"
    if kind == "draw":
        return f"temperature {about['temperature']:g}"
    if kind == "extrapolation":
        return f"weights moved on by {about['factor']:g} of their difference from the base"
    if "index" in about:
        return f"{kind} {about['index']} at {about.get('strength', 1):g} R"
    return str(kind).replace("-", " ")
