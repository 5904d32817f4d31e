"""Figures in one style: an empty one, a finished one, and curves over the same x."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

    from melbo.display.picture import Picture


class Inks(NamedTuple):
    """Colours of a curve.

    Attributes:
        line: Colour of its line.
        muted: Colour of what it is compared with.
    """

    line: str
    muted: str


#: Colours on white.
ON_WHITE = Inks("C0", "grey")


def blank(height: float = 4.2) -> "tuple[Picture, Axes]":
    """An empty figure ``height`` inches high, and its axes."""
    canvas, (axes,) = panels(1, height)
    return canvas, axes


def panels(num: int, height: float = 4.2, width: float = 6.4) -> "tuple[Picture, list[Axes]]":
    """An empty figure with panels side by side, and their axes.

    Args:
        num: Number of panels.
        height: Height of the figure in inches.
        width: Its width in inches.
    """
    # imported here, so that nothing that can draw has to wait for matplotlib
    from melbo.display.picture import Picture

    canvas = Picture(figsize=(width, height), layout="constrained")
    return canvas, list(canvas.subplots(1, num, squeeze=False)[0])


def whole_numbers(*axes: "Axis") -> None:
    """Put ticks of axes at whole numbers only, those of indices say."""
    from matplotlib.ticker import MaxNLocator

    for axis in axes:
        axis.set_major_locator(MaxNLocator(integer=True))


def finished(canvas: "Picture") -> "Picture":
    """The figure without frames, with a legend beside it if a line on the first axes has a name."""
    for axes in canvas.axes:
        axes.spines[["top", "right"]].set_visible(False)
    named = canvas.axes[0].get_legend_handles_labels()
    if named[0]:
        canvas.legend(*named, loc="outside right upper", frameon=False, fontsize=8)
    return canvas


@dataclass(frozen=True)
class Curve:
    """A curve in a panel of its own.

    Attributes:
        label: Label of the y axis.
        y: Its values.
        level: Height of a dashed line to compare it with, or None.
        text: Text at that line.
    """

    label: str
    y: Sequence[float]
    level: float | None = None
    text: str = ""

    def draw(self, axes: "Axes", x: Sequence[float], at: float | None, inks: Inks) -> None:
        """Draw it on axes.

        Args:
            axes: The axes.
            x: Places of its values.
            at: A place to mark on a logarithmic x axis; None for a linear axis without mark.
            inks: Its colours.
        """
        dashed: dict[str, Any] = {"color": inks.muted, "lw": 0.8, "ls": (0, (4, 3))}
        axes.plot(x, self.y, "o-", color=inks.line, ms=3, lw=1.5)
        axes.set(ylabel=self.label, xscale="linear" if at is None else "log")
        axes.yaxis.set_major_formatter("{x:,g}")
        if self.level is not None:
            axes.axhline(self.level, **dashed)
        # a limit ends automatic scaling, which is to see the dashed line too
        axes.set_ylim(min(0, *self.y, self.level or 0), None)
        if self.level is not None:
            corner = ("axes fraction", "data")
            axes.annotate(self.text, (1, self.level), (0, 3), corner, "offset points", ha="right")
        if at is not None:
            axes.axvline(at, **dashed)
            corner = ("data", "axes fraction")
            axes.annotate(f"R = {at:.3g}", (at, 1), (-4, -8), corner, "offset points", ha="right")


def draw_curves(
    size: tuple[float, float],
    xlabel: str,
    x: Sequence[float],
    curves: Sequence[Curve],
    at: float | None = None,
    inks: Inks = ON_WHITE,
) -> "Picture":
    """Curves over the same x, one above the other.

    Args:
        size: Width and height in inches.
        xlabel: Label of the x axis.
        x: Places of the values.
        curves: The curves.
        at: An R to mark on a logarithmic x axis; None for a linear axis without mark.
        inks: Colours of the curves.
    """
    from matplotlib import ticker

    from melbo.display.picture import Picture

    canvas = Picture(figsize=size, layout="constrained")
    grid = canvas.subplots(len(curves), squeeze=False, sharex=True)[:, 0]
    for axes, curve in zip(grid, curves, strict=True):
        curve.draw(axes, x, at, inks)
    last = grid[-1]
    last.set_xlabel(xlabel)
    last.xaxis.set_major_locator(
        ticker.MaxNLocator(integer=True) if at is None else ticker.LogLocator(subs=(1, 2, 5))
    )
    last.minorticks_off()
    last.xaxis.set_major_formatter("{x:g}")
    return canvas
