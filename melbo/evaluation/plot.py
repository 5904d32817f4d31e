"""Pictures in one style: an empty figure, a figure as a PNG, and lines with standard errors."""

import io
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from melbo.maths.statistics import mean_and_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def blank(height: float = 4.2) -> "tuple[Figure, Axes]":
    """An empty figure ``height`` inches high, and its axes."""
    from matplotlib import figure

    canvas = figure.Figure(figsize=(6.4, height), layout="constrained")
    return canvas, canvas.subplots()


def png(canvas: "Figure") -> bytes:
    """A figure as a PNG, with a legend beside it if a line on the first axes has a name."""
    for axes in canvas.axes:
        axes.spines[["top", "right"]].set_visible(False)
    named = canvas.axes[0].get_legend_handles_labels()
    if named[0]:
        canvas.legend(*named, loc="outside right upper", frameon=False, fontsize=8)
    canvas.savefig(out := io.BytesIO(), format="png", dpi=130)
    return out.getvalue()


def lines(
    names: Sequence[str],
    at: Sequence[int],
    values: Callable[[str, int], list[float]],
    *,
    dotted: Collection[str] = (),
    level: float | None = None,
    x: str,
    y: str,
    log: bool = False,
) -> bytes:
    """A PNG with a line for each name: mean ± standard error of its values at each x.

    Points of different lines stand side by side, so that none hides another.

    Args:
        names: Names of the lines.
        at: Places on the x axis.
        values: Values of a line, by its name and the place; a place without values is left out.
        dotted: Names of the lines that are dotted, controls for instance.
        level: Height of a horizontal grey line, or None.
        x: Label of the x axis.
        y: Label of the y axis.
        log: Whether the x axis is logarithmic.

    Returns:
        The content of the file.
    """
    canvas, axes = blank()
    step, middle = 0.01 * (max(at) - min(at)), (len(names) - 1) / 2
    for i, name in enumerate(names):
        known = {n: pair for n in at if (pair := mean_and_error(values(name, n)))}
        if not known:
            continue
        aside = [n * 1.04 ** (i - middle) if log else n + (i - middle) * step for n in known]
        means = [mean for mean, _ in known.values()]
        errors = [error or 0 for _, error in known.values()]
        style = ":" if name in dotted else "-"
        axes.errorbar(
            aside, means, errors, marker="o", ms=3, lw=1.4, capsize=2, label=name, ls=style
        )
    if level is not None:
        axes.axhline(level, color="grey", lw=0.8)
    axes.set(xlabel=x, ylabel=y)
    if log:
        axes.set(xscale="log", xticks=at, xticklabels=[str(n) for n in at])
        axes.minorticks_off()
    return png(canvas)
