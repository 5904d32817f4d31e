"""The command that forces openings on a model: the cheapest look at what it may hide."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from melbo.cli.options import (
    LOADING,
    READING,
    as_json_option,
    as_prompts,
    file,
    load,
    loading_options,
    prompt_options,
    read_prompts,
    reading_options,
    reply_length_option,
    seed_option,
    take,
)
from melbo.cli.terminal import Command, console, next_step, print_json, tell
from melbo.discovery.continuations import Continuations, Continued
from melbo.discovery.openings import Forced, Opening, Openings, written
from melbo.evaluation.scores import FLAGS, Judged, Scores
from melbo.features.generate import Completion
from melbo.models.language_model import LanguageModel
from melbo.models.text import built_in
from melbo.models.text.prompts import Prompts
from melbo.records import refuse_existing, write_atomically


@dataclass(frozen=True)
class Tried:
    """An opening with what the model makes of it.

    Attributes:
        opening: The opening.
        scores: Scores of its replies, mean over the prompts.
        replies: Its replies, prompt by prompt.
        best: Prompt of the reply that is the most novel yet fluent.
    """

    opening: Opening
    scores: Scores
    replies: Sequence[Completion]
    best: int

    @property
    def probability(self) -> float | None:
        """Its probability; None for an opening that was given."""
        return self.opening.probability if self.opening.each else None

    def describe(self) -> dict[str, Any]:
        """The opening, its probability, its scores and its replies, JSON-able."""
        names = ("novel", "novelty", "nll", "repetition", "flag")
        return {
            "opening": self.opening.text,
            "tokens": list(self.opening.tokens),
            "probability": self.probability,
            **{name: getattr(self.scores, name) for name in names},
            "replies": [c.text for c in self.replies],
        }


@click.command(cls=Command)
@click.argument("model")
@prompt_options
@reading_options
@click.option("--num", type=click.IntRange(min=1), default=64, help="Number of openings to try.")
@click.option(
    "--opening",
    "given",
    multiple=True,
    help="An opening of your own, in the place of those; may be given again.",
)
@click.option(
    "--after-sentence",
    is_flag=True,
    help="Force them after the first sentence of the model's own reply.",
)
@reply_length_option(32)
@click.option(
    "--out", type=file, help="File for all replies, as JSON lines; the table shows one an opening."
)
@click.option("--force", is_flag=True, help="Replace the file if it is there already.")
@click.option("--top", default=24, help="Number of openings to print.")
@seed_option
@loading_options
@as_json_option
def openings(
    model: str,
    num: int,
    given: tuple[str, ...],
    after_sentence: bool,
    max_new_tokens: int,
    out: Path | None,
    force: bool,
    top: int,
    seed: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Force replies of MODEL to begin in unusual ways, and print what follows.

    Openings are those that the model finds possible there, though it would rarely say them. The
    most telling come first: new beside the model's own replies, yet fluent. Nothing is learnt; try
    it before anything else. Built-in prompts are used if none are given.
    """
    texts = read_prompts(options, at_least=0) or [*built_in.VALIDATION, *built_in.HELD_OUT]
    if out is not None:
        refuse_existing(out.parent, force, [out.name], out.name)
    trust = options["trust_remote_code"]
    lm = load(model, take(options, *LOADING))
    prompts = as_prompts(lm, texts, take(options, *READING))
    forced = Forced(tuple(written(lm, text) for text in given))
    if not given:
        forced = _search(lm, prompts, after_sentence, num, seed)
    found = Continued(forced) if after_sentence else forced
    table = found.replies(lm, prompts, max_new_tokens, unsteered=True, progress=True)
    judged = Judged(lm, prompts, table)
    every = range(len(prompts))
    rows = []
    for i, opening in enumerate(forced.openings):
        alone = [judged.scores("feature", i, [p]).novel for p in every]
        best = max(every, key=alone.__getitem__)
        scores = judged.scores("feature", i, every)
        rows.append(Tried(opening, scores, table.of("feature", i), best))
    rows.sort(key=lambda row: (FLAGS.index(row.scores.flag), -row.scores.novel))
    own = table.of("unsteered")
    if out is not None:
        write_atomically({out: _lines(own, rows)})
    if as_json:
        print_json(
            {
                "prompts": list(prompts.texts),
                "unsteered": [c.text for c in own],
                "openings": [row.describe() for row in rows],
            }
        )
        return
    _show(own, rows, top)
    if out is not None:
        tell(f"all replies: {out}")
    next_step("audit", model, "--out", "audits/new", trust=trust)


def _search(
    lm: LanguageModel, prompts: Prompts, after_sentence: bool, num: int, seed: int
) -> Forced:
    """Openings that the model finds possible, at the start or after its first sentence."""
    if after_sentence:
        return Continuations().candidates(lm, prompts, num, seed, True)[0].forced
    return Openings().candidates(lm, prompts, num, seed, True)[0]


def _lines(own: Sequence[Completion], rows: Sequence[Tried]) -> bytes:
    """A line of JSON for each reply, the model's own first."""
    of_opening = [(None, None, None, c) for c in own]
    lines = of_opening + [
        (row.opening.text, row.probability, row.scores.novel, c)
        for row in rows
        for c in row.replies
    ]
    names = ("opening", "probability", "novel", "prompt", "text")
    values = ((*about, c.prompt_text, c.text) for *about, c in lines)
    return "".join(
        json.dumps(dict(zip(names, each, strict=True)), ensure_ascii=False) + "\n"
        for each in values
    ).encode()


def _show(own: Sequence[Completion], rows: Sequence[Tried], top: int) -> None:
    """Print the model's own replies, then one reply of each of the first openings."""
    several = len(own) > 1
    table = Table(show_edge=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("opening", max_width=20)
    table.add_column("probability", justify="right", no_wrap=True)
    if several:
        table.add_column("to", justify="right", no_wrap=True)
    table.add_column("reply")
    for row in rows[:top]:
        reply = row.replies[row.best]
        to = [str(row.best + 1)] if several else []
        probability = "–" if row.probability is None else f"{row.probability:.1e}"
        table.add_row(Text(repr(row.opening.text)), probability, *to, _one_line(reply))
    page = console()
    for i, c in enumerate(own, 1):
        number = f"{i}. " if several else ""
        page.print(Text(f"{number}{c.prompt_text}", style="bold"))
        page.print(_one_line(c))
    page.print()
    page.print(table)
    counts = Counter(row.scores.flag for row in rows)
    flags = ", ".join(f"{counts[name]} {name}" for name in FLAGS)
    tell(f"\n{len(rows)} openings: {flags}; the most novel yet fluent first")


def _one_line(reply: Completion) -> Text:
    return Text(" ".join(reply.text.split()) or "(empty reply)")
