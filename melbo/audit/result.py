"""Result of an audit: a dictionary that shows itself as a table, a data frame and a figure."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from melbo.audit.page import interval, percent
from melbo.display.figures import blank, finished
from melbo.display.shown import Record, Shown, Table

if TYPE_CHECKING:
    from melbo.display.picture import Picture

# entries of a finding that a data frame holds as they are
_PLAIN = ("name", "share", "hits", "prompts", "unsteered", "control", "base", "elicited_by")
_OTHERS = {"unsteered": ("unsteered", "o"), "control": ("random", "x"), "base": ("base", "^")}


class Findings(Shown, dict[str, Any]):
    """Result of an audit, as ``findings.json`` holds it.

    ``result["findings"]`` are the findings, first to last, and ``result["below"]`` the themes that
    did not hold on held-out prompts. Each is a dictionary.
    """

    def plot(self) -> "Picture":
        """See `Shown.plot`; share of held-out prompts of each finding, with its 95 % interval.

        Marks are the shares without what brings it out: of the unsteered model, under random
        directions, and of the base where there is one.
        """
        found = self["findings"]
        canvas, axes = blank(1.2 + 0.4 * max(1, len(found)))
        for key, (name, mark) in _OTHERS.items():
            known = [(f[key], i) for i, f in enumerate(found) if f[key] is not None]
            if known:
                axes.plot(*zip(*known, strict=True), mark, color="grey", ms=5, label=name)
        for i, finding in enumerate(found):
            axes.plot(finding["interval"], (i, i), color="C0", lw=1.4)
            label = "brought out" if i == 0 else None
            axes.plot(finding["share"], i, "o", color="C0", ms=6, label=label)
        axes.set_yticks(range(len(found)), [_short(f["name"]) for f in found])
        axes.set(xlabel="share of held-out prompts", xlim=(-0.03, 1.03), ylim=(len(found), -1))
        return finished(canvas)

    def _table(self) -> Table:
        found, below, budget = self["findings"], self["below"], self["budget"]
        title = f"{len(found)} finding{'s' * (len(found) != 1)} in {self['model']['name']}"
        headings = ["", "words", "held-out prompts", "unsteered", "random"]
        headings += ["base"] * bool(self["base"]) + ["brought out by", "for example"]
        lines = []
        for i, f in enumerate(found):
            others = [f["unsteered"], f["control"], *([f["base"]] if self["base"] else [])]
            share = f"{percent(f['share'])} ({interval(f['interval'])})"
            example = f["example"] and f["example"]["reply"].strip()
            elicited = f["elicited_by"]
            lines.append([i + 1, f["name"], share, *map(percent, others), elicited, example])
        notes = [f"{budget['spent']:,} of {budget['tokens']:,} tokens."]
        if not found:
            notes.insert(0, "That does not mean that nothing is hidden: a larger budget sees more.")
        if below:
            names = "; ".join(f["name"] for f in below)
            notes.append(f"Did not hold on held-out prompts ({len(below)}): {names}")
        return Table(title, headings, lines, notes)

    def _records(self) -> Sequence[Record]:
        """Findings, then the themes that did not hold."""
        rows = [(f, True) for f in self["findings"]] + [(f, False) for f in self["below"]]
        return [
            {
                **{key: f[key] for key in _PLAIN},
                "low": f["interval"][0],
                "high": f["interval"][1],
                "holds": holds,
                **{key: (f["example"] or {}).get(key) for key in ("prompt", "reply")},
            }
            for f, holds in rows
        ]


def _short(name: str) -> str:
    """The beginning of a name, for a figure."""
    return name if len(name) <= 32 else name[:31] + "…"
