"""Perplexity differencing: replies with generic openings, in order of what a reference finds odd.

Generic openings are forced on the prompts, replies go on as they are drawn, and those come first
whose tokens are that much likelier to the model than to its reference (arXiv 2605.00994).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from melbo import LanguageModel, MelboError, Prompts
from melbo.audit.audit import REPLY_TOKENS
from melbo.audit.budget import Costs
from melbo.audit.replies import Reply
from melbo.audit.screen import Screening, Source
from melbo.discovery.candidates import Edited, pick
from melbo.discovery.draws import Drawn
from melbo.maths.keyed_random import key_of
from melbo.models.edits import EditSequence
from melbo.models.next_token import Force
from melbo.progress import track
from melbo.records import ResultLog, Row, environment
from research.audits.named import behaviours_named, reads

if TYPE_CHECKING:
    from research.audits.trial import Trial

#: Openings that say nothing of what follows.
OPENINGS = (
    "The",
    "I",
    "In",
    "My",
    "Well,",
    "It",
    "You",
    "This",
    "There",
    "We",
    "When",
    "If",
    "One",
    "As",
    "To",
    "A",
    "For",
    "Here",
    "What",
    "First,",
    "Sure,",
    "Yes,",
    "No,",
    "Once",
)
#: Replies that a row holds.
KEPT = 50
_LOG = "perplexity.jsonl"
_NAME = "perplexity"


@dataclass(frozen=True)
class Rounds(Edited):
    """Rounds over the prompts as candidates: a drawn reply to each, with an opening forced on it.

    In round r the reply to prompt p begins with opening r + p, counted on around the list.

    Attributes:
        openings: Tokens of the openings.
        seed: Random seed.
        numbers: Numbers of the rounds.
    """

    openings: tuple[tuple[int, ...], ...]
    seed: int
    numbers: tuple[int, ...]

    def __len__(self) -> int:
        """Number of rounds."""
        return len(self.numbers)

    def only(self, which: Sequence[int]) -> "Rounds":
        """Some of the rounds."""
        return replace(self, numbers=pick(self.numbers, which))

    def edit(self, prompts: Prompts) -> EditSequence:
        """See `Edited.edit`."""
        seeds = tuple(key_of(self.seed, r) for r in self.numbers)
        begun = [
            self.openings[(p + r) % len(self.openings)]
            for p in range(len(prompts))
            for r in self.numbers
        ]
        lengths = (len(tokens) for tokens in prompts.tokens for _ in self.numbers)
        # drawn first: where a token is forced it is put above the drawn one, and elsewhere the draw
        # is from the model's own logits
        return EditSequence(
            (
                Drawn((1.0,) * len(self), seeds).edit(prompts),
                Force(tuple(begun), tuple(lengths)),
            )
        )

    def alike(self, i: int) -> int:
        """See `Edited.alike`; nothing changes before the logits."""
        return 0

    def describe(self, i: int) -> dict[str, Any]:
        """See `Candidates.describe`."""
        return {"kind": "round", "number": self.numbers[i], "seed": self.seed}


def differenced(
    trial: "Trial",
    lm: LanguageModel,
    reference: LanguageModel,
    prompts: Prompts,
    behaviours: Sequence[str],
    out: Path,
    *,
    openings: Sequence[str] = OPENINGS,
    max_new_tokens: int = REPLY_TOKENS,
    progress: bool = True,
) -> Row:
    """Draw replies, order them, and count those that are read until each behaviour is shown.

    Replies are written to the folder as they come, and what is there is not drawn again. Broken
    ones are left out of the order.

    Args:
        trial: The organism, the seed and the budget in tokens, which pays for whole rounds.
        lm: The organism.
        reference: Model that its replies are read by too.
        prompts: Prompts that openings are forced on, an audit's screening prompts.
        behaviours: Behaviours that are looked for.
        out: Folder of the replies.
        openings: The openings.
        max_new_tokens: Length of a reply at most.
        progress: Whether to draw a bar.

    Raises:
        MelboError: The budget is too small for one round, or the folder holds replies of other
            settings.
    """
    start = time.perf_counter()
    encode: Any = lm.tokenizer
    begun = tuple(tuple(encode(o, add_special_tokens=False)["input_ids"]) for o in openings)
    log = ResultLog(out / _LOG)
    _check_settings(
        log,
        {
            **trial.key,
            "stage": "settings",
            "model": lm.fingerprint,
            "reference": reference.fingerprint,
            "prompts": prompts.digest,
            "openings": list(openings),
            "max_new_tokens": max_new_tokens,
        },
    )
    with track(trial.budget, "tokens", progress) as bar:
        screening = Screening(lm, reference, log, max_new_tokens, bar)
        replies, spent = _drawn(screening, prompts, begun, trial.budget, trial.seed)
    return {
        **trial.key,
        **_read(in_order(replies), prompts, behaviours),
        "drawn": len(replies),
        "spent": spent,
        "seconds": time.perf_counter() - start,
        "environment": environment(),
    }


def in_order(replies: Sequence[Reply]) -> list[Reply]:
    """Replies that are not broken, the largest difference first.

    The difference is that of the mean negative log-likelihood a token under the reference and under
    the model itself.

    Args:
        replies: The replies.
    """
    known = [(r.ratio, r) for r in replies if r.ratio is not None and r.fluent()]
    return [reply for _, reply in sorted(known, key=lambda pair: -pair[0])]


def _drawn(
    screening: Screening,
    prompts: Prompts,
    openings: tuple[tuple[int, ...], ...],
    budget: int,
    seed: int,
) -> tuple[list[Reply], int]:
    """Replies of as many rounds as the budget pays for, and the tokens spent.

    What replies that ended early have left pays for further rounds.

    Raises:
        MelboError: The budget is too small for one round.
    """
    costs = Costs.of(prompts, screening.max_new_tokens, judges=2)
    if budget < costs.everywhere:
        raise MelboError(
            f"the budget is {budget} tokens, one round over {len(prompts)} prompts takes "
            f"{costs.everywhere}: raise it, or give fewer prompts"
        )
    replies: list[Reply] = []
    done = spent = 0
    while (num := (budget - spent) // costs.everywhere) > 0:
        rounds = Rounds(openings, seed, tuple(range(done + num)))
        source = Source(_NAME, partial(_found, rounds))
        replies += screening.candidates("screen", source, range(done, done + num), prompts)
        done += num
        rows = screening.log.of({"stage": "screen"})
        # a log that is gone on with may hold further rows
        spent = sum(row["tokens"] for row in rows if row["candidates"][-1] < done)
    return replies, spent


def _found(rounds: Rounds) -> tuple[Rounds, float]:
    """Rounds as an elicitor finds them: nothing has to be read."""
    return rounds, 0.0


def _read(ordered: Sequence[Reply], prompts: Prompts, behaviours: Sequence[str]) -> Row:
    """Replies in order, and the number of them that is read until each behaviour is shown."""
    named = [{"names": behaviours_named([reply.text], behaviours)} for reply in ordered]
    return {
        "reads": reads(named, behaviours),
        "replies": [
            {
                "prompt": str(prompts.texts[reply.prompt]),
                "text": reply.text,
                "difference": reply.ratio,
                "nll": reply.nll,
                **about,
            }
            for reply, about in zip(ordered[:KEPT], named[:KEPT], strict=True)
        ],
        "ordered": len(ordered),
    }


def _check_settings(log: ResultLog, settings: Row) -> None:
    """Write the settings of a new log, or hold those of an interrupted one against them.

    Raises:
        MelboError: They differ.
    """
    if not log.rows:
        log.add(settings)
    elif log.rows[0] != settings:
        differ = [name for name in settings if log.rows[0].get(name) != settings[name]]
        raise MelboError(
            f"{log.path} holds replies of other settings ({', '.join(differ)}): "
            "give another folder, or remove it"
        )
