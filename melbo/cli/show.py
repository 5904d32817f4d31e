"""Tables and lines that commands print."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from melbo.cli.terminal import console, next_step, tell
from melbo.cli.terminal import say as say
from melbo.discovery.fit import Fit
from melbo.evaluation.comparison import Comparison
from melbo.evaluation.halving import Selection
from melbo.evaluation.tables import plus_minus
from melbo.maps.calibrate import Calibration
from melbo.methods.iterate import Status

#: Measures of a comparison that fit in a terminal, each with its heading.
MEASURES = {
    "effect": "effect",
    "novelty": "novelty",
    "kl": "KL",
    "active": "active",
    "distinct": "distinct",
}


def show_fit(fitted: Fit, out: Path, trust: bool = False) -> None:
    """Print what a fit found and where it is.

    Args:
        fitted: The fit.
        out: Its run folder.
        trust: See `next_step`.
    """
    features = fitted.features
    tell(
        f"{len(features)} features at R = {features.scale:.4g} "
        f"explain {fitted.stats['explained']:.4g}; {features.meta['fit']['remedy']}"
    )
    if stability := features.meta.get("stability"):
        tell(
            f"found again with {stability['seeds']} seeds: "
            f"mean best cosine {stability['mean']:.2f}, random {stability['baseline']:.2f}"
        )
    threads = features.meta.get("threads")
    if threads and fitted.status is not Status.DIRECT:
        tell(
            f"fitted with --threads {threads}: another number rounds otherwise, and may lead to "
            "other features of about the same use"
        )
    click.echo(f"saved to {out}")
    next_step("rank", out, trust=trust)


def show_calibration(found: Calibration) -> None:
    """Print the curve of a calibration, R, and a warning if there is one."""
    for scale, ratio in sorted(found.curve + found.solved[-1:]):
        bar = "█" * min(24, round(16 * ratio))
        click.echo(f"R = {scale:9.4g}   non-linear / linear = {ratio:.3f}  {bar}")
    share = f", {found.relative:.2f} of the stream's median norm" if found.relative else ""
    tell(f"R = {found.scale:.4g}{share}")
    if found.warning:
        say(f"warning: {found.warning}")


def show_comparison(found: Comparison) -> None:
    """Print the measures of every recipe at the norm nearest R, both signs."""
    nearest = min(found.settings["times"], key=lambda x: abs(x - 1))
    tell(f"at {nearest:g} R (R = {found.scale_text}), mean ± sd over seeds")
    table = Table(show_edge=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for heading in MEASURES.values():
        table.add_column(heading, justify="right")
    for row in found.summary:
        if row.times == nearest:
            name = f"{row.recipe} {'+' if row.sign > 0 else '−'}"
            table.add_row(name, *(plus_minus(row.measures[measure]) for measure in MEASURES))
    console().print(table)


def show_firings(found: Mapping[str, Any], num_prompts: int, top: int) -> None:
    """Print the strongest firings, and their number beside the number expected by chance.

    Args:
        found: Description of a `melbo.Watch`.
        num_prompts: Number of prompts that were watched.
        top: Number of firings to print.
    """
    firings, counts = found["firings"], found["counts"]
    if not firings and found["closest"]:
        tell(f"nothing fires (z above {found['fires_above']:g}); these come closest:")
    if shown := firings[:top] or found["closest"]:
        table = Table(show_edge=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for heading in ("feature", "side", "z", "token", "prompt"):
            right = heading in ("feature", "z")
            table.add_column(heading, justify="right" if right else "left", no_wrap=right)
        for f in shown:
            z, token = f"{f['z']:.1f}", Text(repr(f["token"]))
            table.add_row(str(f["feature"]), f["side"], z, token, Text(f["text"]))
        console().print(table)
    tell(
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
    tell(
        f"feature {found.best}: {found.test:.3g} on {num_test} test prompts "
        f"(95 %: {low:.3g} to {high:.3g}); unsteered {found.unsteered:.3g}"
    )
    tell(
        f"(chosen by {found.validation:.3g} on validation prompts, which flatters"
        f"{'; next in order: ' + following if following else ''})"
    )
