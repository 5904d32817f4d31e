"""A ranking in the terminal: verdicts side by side, and features with their replies."""

import sys
from collections.abc import Mapping
from typing import Any

import click
from rich.table import Table

from melbo.cli.terminal import broken_at_words, console, tell
from melbo.evaluation.ranking import Ranked, Ranking, Split
from melbo.evaluation.scores import Scores
from melbo.evaluation.verdict import verdicts

_CONTROLS = 3
_LINES = 2
_INDENT = "    "


def show_ranking(ranking: Ranking, top: int) -> None:
    """Print the first features, the best controls and the unsteered reply, then the verdicts.

    Args:
        ranking: The ranking.
        top: Number of features to print.
    """
    prompt = ranking.settings["held_out"]["texts"][0]
    replies = {(c.kind, c.feature): c.text for c in ranking.completions if c.prompt_text == prompt}
    splits = _splits(ranking.by)
    _line(click.style(broken_at_words(f"Held-out prompt: {prompt}", 4), bold=True))
    heading = f"{'':12}{'flag':8}" + "".join(f"{name:>13}" for name in splits)
    _line(f"{heading}   ({ranking.by})" if splits else heading)
    _show_row("unsteered", "", _numbers(ranking.unsteered, ranking.by, splits), replies)
    for row in (*ranking.features[:top], *ranking.controls[:_CONTROLS]):
        name = f"{'random' if row.kind == 'control' else row.kind} {row.index}"
        numbers = [f"{row.score(ranking.by, split):.3g}" for split in splits.values()]
        _show_row(name, row.validation.flag, numbers, replies, row)
    tell("(flags and order are by validation prompts; broken: gibberish on most of them)")
    click.echo()
    show_verdicts(ranking.describe())


def _splits(by: str) -> dict[str, Split]:
    """Headings of the columns of scores, each with the prompts that it is of."""
    # strength and effect belong to the fit's own prompts: nothing about them is held out
    if by in ("alpha", "effect"):
        return {"of the fit": "validation"}
    return {"validation": "validation", "held out": "held_out"}


def _numbers(own: Mapping[Split, Scores] | None, by: str, splits: Mapping[str, Split]) -> list[str]:
    """Scores of the model itself, where it has such a score."""
    values = [getattr((own or {}).get(split), by, None) for split in splits.values()]
    return ["" if value is None else f"{value:.3g}" for value in values]


def _show_row(
    name: str,
    flag: str,
    numbers: list[str],
    replies: Mapping[tuple[str, int | None], str],
    row: Ranked | None = None,
) -> None:
    """A line of numbers, and the reply under it."""
    key = ("unsteered", None) if row is None else (row.kind, row.index)
    late = "" if row is None or row.flag == flag else f"   ({row.flag} on held-out prompts)"
    line = f"{name:12}{flag:8}" + "".join(f"{number:>13}" for number in numbers) + late
    _line(click.style(line.rstrip(), fg="cyan"))
    reply = " ".join(replies[key].split()) or "(empty reply)"
    _line(broken_at_words(_INDENT + reply, len(_INDENT), _LINES))


def _line(text: str) -> None:
    """Print a line as it stands; click would write UTF-8 where the output is ASCII."""
    click.echo(text, file=sys.stdout)


def show_verdicts(ranking: Mapping[str, Any]) -> None:
    """Print flags and means of features and controls, and the verdicts by all scores.

    Args:
        ranking: The ranking, as JSON.
    """
    facts = ranking["summary"]
    for kind in ("features", "controls"):
        flags = ", ".join(f"{n} {name}" for name, n in facts[kind].items())
        means = ", ".join(f"{name} {value:.3g}" for name, value in facts["means"][kind].items())
        tell(f"{sum(facts[kind].values())} {kind}: {flags}; mean {means}")
    found = verdicts(ranking)
    if found[0].best_control is None:
        tell("no random vector is active: there is nothing to compare with")
        return
    tell("\nFeatures above the best active random vector, on held-out prompts:")
    table = Table(show_edge=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("by", "active", "by chance", "broken"):
        table.add_column(name, justify="left" if name == "by" else "right", no_wrap=True)
    table.add_column("a high value means")
    for each in found:
        table.add_row(
            each.name,
            f"{each.above} of {each.active}",
            f"{each.by_chance:.1f}",
            f"{each.broken_above} of {each.broken}",
            each.meaning,
        )
    console().print(table)
