"""A picture of points inside a page, each a link to the row that it stands for."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from melbo.evaluation.curves import COLOURS, STYLE, inline

# how a point of each kind looks
_LOOKS: dict[str, dict[str, Any]] = {
    "active": {"color": COLOURS["good"], "marker": "o"},
    "inert": {"color": COLOURS["idle"], "marker": "o"},
    "broken": {"color": COLOURS["bad"], "marker": "X"},
    "random": {"color": COLOURS["random"], "marker": "+"},
}


@dataclass(frozen=True)
class Point:
    """A point.

    Attributes:
        kind: ``"active"``, ``"inert"``, ``"broken"`` or ``"random"``.
        name: Name, shown under the pointer.
        link: ``id`` of the element that it leads to: letters, digits and hyphens.
        x: Place to the right.
        y: Place upwards, or downwards if the y axis is turned over.
    """

    kind: str
    name: str
    link: str
    x: float
    y: float


def scatter(title: str, xlabel: str, ylabel: str, points: Sequence[Point]) -> Markup:
    """Points as an SVG element, the y axis turned over: small values are at the top.

    Args:
        title: Text in place of the picture for those who cannot see it.
        xlabel: Label of the x axis.
        ylabel: Label of the y axis.
        points: The points.
    """
    from matplotlib import figure, rc_context

    with rc_context({**STYLE, "svg.hashsalt": title}):
        canvas = figure.Figure(figsize=(7.2, 4), layout="constrained")
        axes = canvas.subplots()
        for kind, look in reversed(_LOOKS.items()):
            own = [p for p in points if p.kind == kind]
            if own:
                x, y = [p.x for p in own], [p.y for p in own]
                drawn = axes.scatter(x, y, s=22, linewidths=1, label=f"{kind} {len(own)}", **look)
                drawn.set_urls([f"#{p.link}" for p in own])
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.invert_yaxis()
        handles, labels = axes.get_legend_handles_labels()
        canvas.legend(handles[::-1], labels[::-1], loc="outside upper left", ncols=4, frameon=False)
        canvas.savefig(out := io.StringIO(), format="svg", transparent=True)
    names = {p.link: p.name for p in points}
    # the table has the same links: they need not be stops of the tab key too
    named = re.sub(
        r'<a xlink:href="#([\w-]+)"[^>]*>',
        lambda a: Markup('<a tabindex="-1" xlink:href="#{}"><title>{}</title>').format(
            a[1], names[a[1]]
        ),
        inline(out.getvalue(), title),
    )
    return Markup(named)
