"""Pictures for pages: a figure as a PNG, and lines with standard errors."""

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from melbo.display.figures import blank as blank
from melbo.display.figures import finished
from melbo.maths.statistics import mean_and_error

if TYPE_CHECKING:
    from melbo.display.picture import Picture


def png(canvas: "Picture") -> bytes:
    """A figure as a PNG, finished as `melbo.display.figures.finished` does it."""
    return finished(canvas).png(dpi=130)


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
