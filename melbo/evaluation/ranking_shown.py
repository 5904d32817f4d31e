"""A ranking as a table, as a data frame and as a figure."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from melbo.display.figures import blank, finished
from melbo.display.shown import Record, Shown, Table, number
from melbo.evaluation.scores import FLAGS
from melbo.features.generate import Completions

if TYPE_CHECKING:
    from melbo.display.picture import Picture
    from melbo.evaluation.ranking import Ranked

_CONTROLS = 3
_MARKS = dict(zip(FLAGS, ("o", "s", "x"), strict=True))


class RankingShown(Shown):
    """The part of `melbo.Ranking` that shows it; its attributes are described there."""

    by: str
    features: "tuple[Ranked, ...]"
    controls: "tuple[Ranked, ...]"
    completions: Completions
    settings: dict[str, Any]

    @property
    def summary(self) -> dict[str, Any]:
        """Features against controls; see `melbo.Ranking.summary`."""
        raise NotImplementedError

    def plot(self) -> "Picture":
        """See `Shown.plot`; the score of every vector on validation and on held-out prompts.

        The order was chosen by the one, so only the other is without flattery. Marks tell the flag
        on held-out prompts.
        """
        canvas, axes = blank()
        groups = ((self.controls, "random", "grey"), (self.features, "feature", "C0"))
        for rows, name, colour in groups:
            for flag, mark in _MARKS.items():
                x, y = (
                    [r.score(self.by, split) for r in rows if r.flag == flag]
                    for split in ("validation", "held_out")
                )
                if x:
                    label = f"{name}, {flag}"
                    axes.plot(x, y, mark, color=colour, ms=4, alpha=0.7, label=label)
        axes.set(xlabel=f"{self.by}, validation prompts", ylabel=f"{self.by}, held-out prompts")
        return finished(canvas)

    def _table(self) -> Table:
        facts, prompt = self.summary, self.settings["held_out"]["texts"][0]
        title = f"{len(self.features)} features by {self.by!r}, {len(self.controls)} random ones"
        said = {(c.kind, c.feature): c.text for c in self.completions if c.prompt_text == prompt}
        shown = [*self.controls[:_CONTROLS], *self.features]
        lines: list[list[Any]] = [["unsteered", None, None, None, said.get(("unsteered", None))]]
        lines += [
            [
                f"{'random' if row.kind == 'control' else row.kind} {row.index}",
                row.flag,
                row.score(self.by, "validation"),
                row.score(self.by, "held_out"),
                said.get((row.kind, row.index)),
            ]
            for row in shown
        ]
        headings = ["", "flag", f"{self.by}, validation", "held out", f"reply to {prompt!r}"]
        notes = []
        if facts["best_control"] is not None:
            notes.append(
                f"{facts['above_best_control']} active features beat the best active random one "
                f"({number(facts['best_control'])}) on held-out prompts; by chance "
                f"{facts['expected_by_chance']:.1f} would."
            )
        return Table(title, headings, lines, notes)

    def _records(self) -> Sequence[Record]:
        """Features and controls with all their scores."""
        return [_flat(row) for row in (*self.features, *self.controls)]


def _flat(row: "Ranked") -> dict[str, Any]:
    """A row with its scores side by side."""
    found: dict[str, Any] = {"flag": row.flag}
    for key, value in asdict(row).items():
        if isinstance(value, dict):
            found.update({f"{key}_{name}": inside for name, inside in value.items()})
        else:
            found[key] = value
    return found
