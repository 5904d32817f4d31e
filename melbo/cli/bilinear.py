"""Commands on the weights of gated MLPs: trace."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click
from rich.table import Table

from melbo.bilinear.trace import ALPHAS, PREDICTIONS, Agreement, Response, Trace, check_alphas
from melbo.bilinear.trace import trace as trace_contrast
from melbo.cli.options import (
    LOADING,
    as_json_option,
    default_layers,
    file,
    load,
    loading_options,
    take,
)
from melbo.cli.terminal import Command, console, next_step, print_json, tell
from melbo.errors import MelboError
from melbo.evaluation.plot import blank, png
from melbo.models.text.prompts import Prompts
from melbo.records import write_atomically


@click.group()
def bilinear() -> None:
    """Say what the weights of gated MLPs tell of a steering vector."""


@bilinear.command(cls=Command)
@click.argument("model")
@click.option("--positive", required=True, help="Text to move towards.")
@click.option("--negative", required=True, help="Text that is steered.")
@click.option(
    "--layer",
    type=int,
    help="Layer at which the vector is taken and added; by default at 8/30 of the depth.",
)
@click.option(
    "--scale",
    "scales",
    type=float,
    multiple=True,
    default=ALPHAS,
    help="Multiple α of the vector; may be given again.",
)
@click.option("--picture", type=file, help="PNG file to write.")
@loading_options
@as_json_option
def trace(
    model: str,
    positive: str,
    negative: str,
    layer: int | None,
    scales: Sequence[float],
    picture: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Trace a contrast vector through the gated MLPs of MODEL.

    MODEL is smollm2 (the bundled model), a hub id, a folder or a .gguf file. The vector is the
    difference of the streams at the last tokens of the two texts, which are read as they stand.
    Each MLP's response is compared with what its weights predict without the non-linearity of the
    gate, and with expansions at the activation.
    """
    _check_texts(positive, negative)
    check_alphas(scales)
    trust = options["trust_remote_code"]
    lm = load(model, take(options, *LOADING))
    towards, away = Prompts.text(lm, [positive, negative]).tokens
    at = default_layers(lm)[0] if layer is None else layer
    found = trace_contrast(lm, towards, away, at, sorted(scales))
    if picture is not None:
        write_atomically({picture: draw(found)})
    if as_json:
        print_json(found.describe())
    else:
        _show(found)
        pair = ("--plus", positive, "--minus", negative, "--layer", at, "--text")
        out = ("--out", "runs/pair")
        next_step("contrast", model, "--method", "actadd", *pair, *out, trust=trust)


def _check_texts(positive: str, negative: str) -> None:
    """Refuse a contrast of a text with itself.

    Raises:
        MelboError: The two are the same.
    """
    if positive == negative:
        raise MelboError("--positive and --negative are the same text: give two that differ")


def draw(found: Trace) -> bytes:
    """A PNG: cosine of each prediction with the real response by α, a thin line for each block."""
    canvas, axes = blank()
    alphas = [r.alpha for r in next(iter(found.responses.values()))]
    for i, name in enumerate(PREDICTIONS):
        cosines = [
            [r.agreement[name].cosine for r in responses] for responses in found.responses.values()
        ]
        for y in cosines:
            axes.plot(alphas, y, color=f"C{i}", lw=0.6, alpha=0.35)
        middle = [median(column) for column in zip(*cosines, strict=True)]
        axes.plot(alphas, middle, "o-", color=f"C{i}", ms=3, lw=1.8, label=name)
    axes.set(xlabel="α (thick: median over blocks)", ylabel="cosine with the MLP's response")
    if alphas[0] > 0:
        axes.set_xscale("log")
    axes.set_xticks(alphas, [f"{alpha:g}" for alpha in alphas])
    axes.minorticks_off()
    return png(canvas)


def _show(found: Trace) -> None:
    """Print a line for each block at the α nearest 1, and a line for each α over all blocks."""
    tell(
        f"contrast vector at layer {found.layer}: norm {found.norm:.4g}, "
        f"{found.norm / found.stream:.2f} of the stream that it is added to"
    )
    by_alpha = [*zip(*found.responses.values(), strict=True)]
    nearest = min(by_alpha, key=lambda rows: abs(rows[0].alpha - 1))
    at = f"α = {nearest[0].alpha:g}"
    blocks = [(str(block), r) for block, r in zip(found.responses, nearest, strict=True)]
    fits = "cosine / relative error of each prediction"
    _print(f"{at}: {fits}", ("block", *PREDICTIONS), [(block, *_fits([r])) for block, r in blocks])
    _print(
        f"{at}: responses, and the hidden units that carry them",
        ("block", "size", "cross", "self", "units for half", "largest unit"),
        [
            (block, *_sizes([r]), str(r.carriers), f"{r.units[0][0]} ({r.units[0][1]:.0%})")
            for block, r in blocks
        ],
    )
    _print(
        f"median over these blocks: {fits}",
        ("α", *PREDICTIONS),
        [(f"{rows[0].alpha:g}", *_fits(rows)) for rows in by_alpha],
    )
    _print(
        "median over these blocks: responses",
        ("α", "size", "cross", "self", "input bent by"),
        [
            (f"{rows[0].alpha:g}", *_sizes(rows), f"{median(r.bent for r in rows):.2f}")
            for rows in by_alpha
        ],
    )


def _sizes(rows: Sequence[Response]) -> list[str]:
    """Medians over responses: size, and share of cross and self."""
    cross = median(r.cross for r in rows)
    return [f"{share:.2f}" for share in (median(r.size for r in rows), cross, 1 - cross)]


def _fits(rows: Sequence[Response]) -> list[str]:
    """Medians over responses: agreement of each prediction."""
    fits = [_median([r.agreement[name] for r in rows]) for name in PREDICTIONS]
    return [f"{fit.cosine:.2f} / {fit.error:.2f}" for fit in fits]


def _median(fits: Sequence[Agreement]) -> Agreement:
    """Median cosine, and median error."""
    return Agreement(*(median(column) for column in zip(*fits, strict=True)))


def _print(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table of numbers."""
    table = Table(show_edge=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    tell(f"\n{title}")
    console().print(table)
