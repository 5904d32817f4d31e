"""What commands print."""

import sys
from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from melbo.evaluation.compare import Comparison, text_of
from melbo.evaluation.halving import Selection
from melbo.evaluation.rank import Ranking
from melbo.evaluation.tables import plus_minus
from research.speed.measure import Row


def say(text: str) -> None:
    """A line on standard error."""
    click.echo(text, err=True)


def show_row(row: Row, threads: int) -> None:
    """A line for one thing that was measured."""
    share = f"{row.of_products:5.0%} of its products' rate" if row.of_products else ""
    versus = "   ".join(f"{name} × {ratio:.3g}" for name, ratio in (row.versus or {}).items())
    click.echo(f"{threads} threads  {row.what:45} {row.median:8.3f} s  {share:28} {versus}")


def show_ranking(ranking: Ranking, top: int) -> None:
    """The first features, the best of the control and the unsteered reply, as a table."""
    prompt = ranking.settings["held_out"]["texts"][0]
    said = {
        (c.kind, c.feature): " ".join(c.text.split()) or "(empty reply)"
        for c in ranking.completions
        if c.prompt_text == prompt
    }
    # wide enough to be read where there is no terminal to measure
    console = Console() if sys.stdout.isatty() else Console(width=150)
    table = Table(
        title=f"Held-out prompt: {prompt}",
        title_justify="left",
        title_style="bold",
        show_edge=False,
    )
    # strength and effect belong to the fit's own prompts: there is nothing held out about them
    prefix_safe = (
        {ranking.by: "validation"}
        if ranking.by in ("alpha", "effect")
        else {f"{ranking.by}, validation": "validation", "held out": "held_out"}
    )
    for heading in ("", "flag"):
        table.add_column(heading)
    for heading in prefix_safe:
        table.add_column(heading, justify="right")
    table.add_column("reply")
    table.add_row(
        "unsteered", "", *["" for _ in prefix_safe], Text(said["unsteered", None]), end_section=True
    )
    for rows, count in ((ranking.features, top), (ranking.controls, 3)):
        for i, r in enumerate(rows[:count]):
            scores = [f"{r.score(ranking.by, split):.3g}" for split in prefix_safe.values()]
            name = f"feature {r.index}" if r.kind == "feature" else f"random {r.index}"
            table.add_row(
                name,
                r.flag,
                *scores,
                Text(said[r.kind, r.index]),
                end_section=i == min(count, len(rows)) - 1,
            )
    console.print(table)
    facts = ranking.summary
    for kind in ("features", "controls"):
        counts, means = facts[kind], facts["means"][kind]
        flags = ", ".join(f"{n} {name}" for name, n in counts.items())
        click.echo(
            f"{sum(counts.values())} {kind}: {flags}; mean "
            + ", ".join(f"{name} {value:.3g}" for name, value in means.items())
        )
    if facts["best_control"] is not None:
        where = "the fit's own" if ranking.by == "effect" else "held-out"
        best, above, chance = (
            facts[name] for name in ("best_control", "above_best_control", "expected_by_chance")
        )
        click.echo(
            f"{above} active features beat the best active random vector ({best:.3g}) on {where} prompts; by chance {chance:.1f} would"
        )


def show_comparison(found: Comparison) -> None:
    """Every way at the norm nearest R, both signs."""
    nearest = min(found.settings["times"], key=lambda x: abs(x - 1))
    columns = ["effect", "explained", "novelty", "kl", "active", "broken", "distinct", "passes"]
    console = Console() if sys.stdout.isatty() else Console(width=150)
    table = Table(
        title=f"at {nearest:g} R (R = {text_of(found.settings['scales'])}), mean ± sd over seeds",
        title_justify="left",
        show_edge=False,
    )
    table.add_column("")
    for heading in columns:
        table.add_column(heading, justify="right")
    for row in found.summary:
        if row["times"] == nearest:
            table.add_row(
                f"{row['recipe']} {'+' if row['sign'] > 0 else '−'}",
                *(plus_minus(row[k]) for k in columns),
            )
    console.print(table)


def show_firings(found: dict[str, Any], texts: Sequence[str], top: int) -> None:
    """The strongest firings, and how many a prompt has."""
    console = Console() if sys.stdout.isatty() else Console(width=150)
    table = Table(show_edge=False)
    for heading in ("feature", "side", "z", "token", "prompt"):
        table.add_column(heading, justify="right" if heading in ("feature", "z") else "left")
    for f in found["firings"][:top]:
        table.add_row(
            str(f["feature"]), f["side"], f"{f['z']:.1f}", repr(f["token"]), Text(f["text"])
        )
    if found["firings"]:
        console.print(table)
    counts = found["counts"]
    click.echo(
        f"{sum(counts)} firings on {len(texts)} prompts, {sum(n > 0 for n in counts)} of them with any; "
        f"by chance {found['expected_by_chance'] * len(texts):.1f} (as on the {found['num_reference']} reference prompts)"
    )


def show_selection(found: Selection, num_test: int) -> None:
    """The winner, on the test prompts."""
    for failure in found.failed[:3]:
        say(
            f"warning: no score for feature {failure['feature']} on {failure['set']} prompt {failure['prompt']}: {failure['why']}"
        )
    low, high = found.interval
    click.echo(
        f"feature {found.best}: {found.test:.3g} on {num_test} test prompts (95 %: {low:.3g} to {high:.3g}); unsteered {found.unsteered:.3g}\n"
        f"(chosen by {found.validation:.3g} on validation prompts, which flatters; next in order: {', '.join(map(str, found.order[1:4]))})"
    )
