"""Pictures of one style: an empty one, what it is once drawn on, and the one that most need: ways as lines, with standard errors."""

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .tables import mean_and_error
from .ways import WAYS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def blank(height: float = 4.2) -> "tuple[Figure, Axes]":
    """A figure ``height`` inches high, and its axes to draw on."""
    from matplotlib import figure

    canvas = figure.Figure(figsize=(6.4, height), layout="constrained")
    return canvas, canvas.subplots()


def png(canvas: "Figure") -> bytes:
    """What was drawn; beside it a legend, if anything on the first axes has a name."""
    for axes in canvas.axes:
        axes.spines[["top", "right"]].set_visible(False)
    named = canvas.axes[0].get_legend_handles_labels()
    if named[0]:
        canvas.legend(*named, loc="outside right upper", frameon=False, fontsize=8)
    canvas.savefig(out := io.BytesIO(), format="png", dpi=130)
    return out.getvalue()


def dash(way: str) -> str:
    """Line style of a way: what is not learnt is dotted."""
    return ":" if way in WAYS and not WAYS[way].method else "-"


def lines(
    ways: Sequence[str], at: Sequence[int], values: Callable[[str, int], list[float]], unsteered: float | None, x: str, y: str, log: bool = False
) -> bytes:
    """A PNG with a line for each way: mean ± standard error of ``values(way, x)`` wherever there are some; controls dotted.

    They stand side by side, so that none hides another.
    """
    canvas, axes = blank()
    step, middle = 0.01 * (max(at) - min(at)), (len(ways) - 1) / 2
    for i, way in enumerate(ways):
        known = {n: found for n in at if (found := mean_and_error(values(way, n)))}
        if not known:
            continue
        aside = [n * 1.04 ** (i - middle) if log else n + (i - middle) * step for n in known]
        means, errors = [mean for mean, _ in known.values()], [error or 0 for _, error in known.values()]
        axes.errorbar(aside, means, errors, marker="o", ms=3, lw=1.4, capsize=2, label=way, ls=dash(way))
    if unsteered is not None:
        axes.axhline(unsteered, color="grey", lw=0.8)
    axes.set(xlabel=x, ylabel=y)
    if log:
        axes.set(xscale="log", xticks=at, xticklabels=[str(n) for n in at])
        axes.minorticks_off()
    return png(canvas)
