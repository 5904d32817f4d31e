"""Tables and lines that commands print."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from melbo.discovery.fit import Fit
from melbo.evaluation.comparison import Comparison
from melbo.evaluation.halving import Selection
from melbo.evaluation.rank import Ranked, Ranking, Split
from melbo.evaluation.tables import plus_minus
from melbo.maps.calibrate import Calibration

#: Measures of a comparison that fit in a terminal.
MEASURES = ("effect", "explained", "novelty", "kl", "active", "broken", "distinct", "passes")


def say(text: str) -> None:
    """Print a line on standard error."""
    click.echo(text, err=True)


def next_command(name: str, folder: Path, trust: bool = False) -> str:
    """A command to go on with, as a shell takes it.

    Args:
        name: Name of the command.
        folder: The run folder, or the model's.
        trust: Whether the model needed --trust-remote-code, which no run turns on by itself.
    """
    return f"melbo {name} {shlex.quote(str(folder))}" + " --trust-remote-code" * trust


def show_fit(fitted: Fit, out: Path, trust: bool = False) -> None:
    """Print what a fit found and where it is.

    Args:
        fitted: The fit.
        out: Its run folder.
        trust: See `next_command`.
    """
    features = fitted.features
    click.echo(
        f"{len(features)} features at R = {features.scale:.4g} "
        f"explain {fitted.stats['explained']:.4g}; {fitted.status.remedy}"
    )
    if stability := features.meta.get("stability"):
        click.echo(
            f"found again with {stability['seeds']} seeds: "
            f"mean best cosine {stability['mean']:.2f}, random {stability['baseline']:.2f}"
        )
    click.echo(f"saved to {out}; next: {next_command('rank', out, trust)}")


def show_calibration(found: Calibration) -> None:
    """Print the curve of a calibration, R, and a warning if there is one."""
    for scale, ratio in sorted(found.curve + found.solved[-1:]):
        bar = "█" * min(60, round(40 * ratio))
        click.echo(f"R = {scale:9.4g}   non-linear / linear = {ratio:.3f}  {bar}")
    share = f", {found.relative:.2f} of the stream's median norm" if found.relative else ""
    click.echo(f"R = {found.scale:.4g}{share}")
    if found.warning:
        say(f"warning: {found.warning}")


def show_ranking(ranking: Ranking, top: int) -> None:
    """Print the first features, the best controls and the unsteered reply, and all in numbers.

    Args:
        ranking: The ranking.
        top: Number of features to print.
    """
    prompt = ranking.settings["held_out"]["texts"][0]
    replies = {
        (c.kind, c.feature): Text(" ".join(c.text.split()) or "(empty reply)")
        for c in ranking.completions
        if c.prompt_text == prompt
    }
    table = Table(
        title=f"Held-out prompt: {prompt}",
        title_justify="left",
        title_style="bold",
        show_edge=False,
    )
    # strength and effect belong to the fit's own prompts: nothing about them is held out
    columns: dict[str, Split]
    if ranking.by in ("alpha", "effect"):
        columns = {ranking.by: "validation"}
    else:
        columns = {f"{ranking.by}, validation": "validation", "held out": "held_out"}
    for heading in ("", "flag"):
        table.add_column(heading)
    for heading in columns:
        table.add_column(heading, justify="right")
    table.add_column("reply")
    blank = ["" for _ in columns]
    table.add_row("unsteered", "", *blank, replies["unsteered", None], end_section=True)

    def add(rows: tuple[Ranked, ...], name: str) -> None:
        for i, row in enumerate(rows):
            scores = [f"{row.score(ranking.by, split):.3g}" for split in columns.values()]
            reply, last = replies[row.kind, row.index], i == len(rows) - 1
            table.add_row(f"{name} {row.index}", row.flag, *scores, reply, end_section=last)

    add(ranking.features[:top], "feature")
    add(ranking.controls[:3], "random")
    _console().print(table)
    _show_counts(ranking)


def _show_counts(ranking: Ranking) -> None:
    """Print the flags and means of features and controls, and how many beat the best control."""
    facts = ranking.summary
    for kind in ("features", "controls"):
        flags = ", ".join(f"{n} {name}" for name, n in facts[kind].items())
        means = ", ".join(f"{name} {value:.3g}" for name, value in facts["means"][kind].items())
        click.echo(f"{sum(facts[kind].values())} {kind}: {flags}; mean {means}")
    if facts["best_control"] is not None:
        where = "the fit's own" if ranking.by == "effect" else "held-out"
        click.echo(
            f"{facts['above_best_control']} active features beat the best active random vector "
            f"({facts['best_control']:.3g}) on {where} prompts; "
            f"by chance {facts['expected_by_chance']:.1f} would"
        )


def show_comparison(found: Comparison) -> None:
    """Print the measures of every recipe at the norm nearest R, both signs."""
    nearest = min(found.settings["times"], key=lambda x: abs(x - 1))
    table = Table(
        title=f"at {nearest:g} R (R = {found.scale_text}), mean ± sd over seeds",
        title_justify="left",
        show_edge=False,
    )
    table.add_column("")
    for heading in MEASURES:
        table.add_column(heading, justify="right")
    for row in found.summary:
        if row.times == nearest:
            name = f"{row.recipe} {'+' if row.sign > 0 else '−'}"
            table.add_row(name, *(plus_minus(row.measures[measure]) for measure in MEASURES))
    _console().print(table)


def show_firings(found: Mapping[str, Any], num_prompts: int, top: int) -> None:
    """Print the strongest firings, and their number beside the number expected by chance.

    Args:
        found: Description of a `melbo.Watch`.
        num_prompts: Number of prompts that were watched.
        top: Number of firings to print.
    """
    firings, counts = found["firings"], found["counts"]
    if firings:
        table = Table(show_edge=False)
        for heading in ("feature", "side", "z", "token", "prompt"):
            table.add_column(heading, justify="right" if heading in ("feature", "z") else "left")
        for f in firings[:top]:
            z, token = f"{f['z']:.1f}", repr(f["token"])
            table.add_row(str(f["feature"]), f["side"], z, token, Text(f["text"]))
        _console().print(table)
    click.echo(
        f"{sum(counts)} firings on {num_prompts} prompts, "
        f"{sum(n > 0 for n in counts)} of them with any; "
        f"by chance {found['expected_by_chance'] * num_prompts:.1f} "
        f"(as on the {found['num_reference']} reference prompts)"
    )


def show_selection(found: Selection, num_test: int) -> None:
    """Print the winner of a selection and its score on the test prompts.

    Args:
        found: The selection.
        num_test: Number of test prompts.
    """
    for failure in found.failed[:3]:
        say(
            f"warning: no score for feature {failure['feature']} "
            f"on {failure['set']} prompt {failure['prompt']}: {failure['why']}"
        )
    low, high = found.interval
    following = ", ".join(map(str, found.order[1:4]))
    click.echo(
        f"feature {found.best}: {found.test:.3g} on {num_test} test prompts "
        f"(95 %: {low:.3g} to {high:.3g}); unsteered {found.unsteered:.3g}"
    )
    click.echo(
        f"(chosen by {found.validation:.3g} on validation prompts, which flatters; "
        f"next in order: {following})"
    )


def _console() -> Console:
    """The terminal, or a width that can be read where there is none to measure."""
    return Console() if sys.stdout.isatty() else Console(width=150)
