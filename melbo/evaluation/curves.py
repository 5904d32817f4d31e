"""Curves as pictures inside a page: SVG that follows the page's light or dark colours."""

import io
import re
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from melbo.display.figures import Curve as Curve
from melbo.display.figures import Inks, draw_curves

#: Colours that a figure is drawn with, by their names in the page, whose own take their place.
COLOURS = {
    name: f"#{number:06x}"
    for number, name in enumerate(("ink", "accent", "muted", "good", "idle", "bad", "random"), 1)
}
_INK, _OF_CURVES = COLOURS["ink"], Inks(COLOURS["accent"], COLOURS["muted"])
_INKED = ("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "text.color")
#: Settings of matplotlib.
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(_INKED, _INK),
}


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
    from matplotlib import rc_context

    # the title salts ids, which then are the same every time and in no other figure
    with rc_context({**STYLE, "svg.hashsalt": title}):
        canvas = draw_curves((4.8, 3), xlabel, x, panels, at, _OF_CURVES)
        canvas.savefig(out := io.StringIO(), format="svg", transparent=True)
    return inline(out.getvalue(), title)


def inline(svg: str, title: str) -> Markup:
    """An SVG file as part of a page: no header or metadata, colours of the page, a text instead.

    Args:
        svg: The file, drawn in `COLOURS` only.
        title: Text in place of the picture for those who cannot see it.
    """
    unwanted = r'<metadata>.*?</metadata>| id="[\w.]+_\d+"'
    svg = re.sub(unwanted, "", svg[svg.index("<svg") :], flags=re.DOTALL)
    for name, drawn in COLOURS.items():
        svg = svg.replace(drawn, f"var(--{name})")
    box = svg.split('viewBox="')[1].split('"')[0]
    opening = Markup('<svg role="img" aria-label="{0}" viewBox="{1}"><title>{0}</title>')
    return opening.format(title, box) + Markup(svg[svg.index(">") + 1 :])
