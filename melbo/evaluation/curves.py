"""Curves as pictures inside a page: SVG that follows the page's light or dark colours."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# colours that a figure is drawn with, and what the page has in their place
_COLOURS = {"#000001": "currentColor", "#000002": "var(--accent)", "#000003": "var(--muted)"}
_INK, _ACCENT, _MUTED = _COLOURS
_INKED = ("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "text.color")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(_INKED, _INK),
}
_DASHED: dict[str, Any] = {"color": _MUTED, "lw": 0.8, "ls": (0, (4, 3))}


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

    def draw(self, axes: "Axes", x: Sequence[float], at: float | None) -> None:
        """Draw it on axes.

        Args:
            axes: The axes.
            x: Places of its values.
            at: A place to mark on a logarithmic x axis; None for a linear axis without mark.
        """
        axes.plot(x, self.y, "o-", color=_ACCENT, ms=3, lw=1.5)
        axes.set(ylabel=self.label, xscale="linear" if at is None else "log")
        axes.yaxis.set_major_formatter("{x:,g}")
        if self.level is not None:
            axes.axhline(self.level, **_DASHED)
        # a limit ends automatic scaling, which is to see the dashed line too
        axes.set_ylim(min(0, *self.y, self.level or 0), None)
        if self.level is not None:
            corner = ("axes fraction", "data")
            axes.annotate(self.text, (1, self.level), (0, 3), corner, "offset points", ha="right")
        if at is not None:
            axes.axvline(at, **_DASHED)
            corner = ("data", "axes fraction")
            axes.annotate(f"R = {at:.3g}", (at, 1), (-4, -8), corner, "offset points", ha="right")


def curves(
    title: str,
    xlabel: str,
    x: Sequence[float],
    panels: Sequence[Curve],
    at: float | None = None,
) -> Markup:
    """Curves over the same x, one above the other, as an SVG element.

    Args:
        title: Text in place of the picture for those who cannot see it.
        xlabel: Label of the x axis.
        x: Places of the values.
        panels: The curves.
        at: An R to mark on a logarithmic x axis; None for a linear axis without mark.
    """
    from matplotlib import figure, rc_context, ticker

    # the title salts ids, which then are the same every time and in no other figure
    with rc_context({**_STYLE, "svg.hashsalt": title}):
        canvas = figure.Figure(figsize=(4.8, 3), layout="constrained")
        grid = canvas.subplots(len(panels), squeeze=False, sharex=True)[:, 0]
        for axes, curve in zip(grid, panels, strict=True):
            curve.draw(axes, x, at)
        last = grid[-1]
        last.set_xlabel(xlabel)
        last.xaxis.set_major_locator(
            ticker.MaxNLocator(integer=True) if at is None else ticker.LogLocator(subs=(1, 2, 5))
        )
        last.minorticks_off()
        last.xaxis.set_major_formatter("{x:g}")
        canvas.savefig(out := io.StringIO(), format="svg", transparent=True)
    return _inline(out.getvalue(), title)


def _inline(svg: str, title: str) -> Markup:
    """An SVG file as part of a page: no header or metadata, colours of the page, a text instead."""
    unwanted = r'<metadata>.*?</metadata>| id="[\w.]+_\d+"'
    svg = re.sub(unwanted, "", svg[svg.index("<svg") :], flags=re.DOTALL)
    for drawn, colour in _COLOURS.items():
        svg = svg.replace(drawn, colour)
    box = svg.split('viewBox="')[1].split('"')[0]
    opening = Markup('<svg role="img" aria-label="{0}" viewBox="{1}"><title>{0}</title>')
    return opening.format(title, box) + Markup(svg[svg.index(">") + 1 :])
