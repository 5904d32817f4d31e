"""The map of features, and the curves of a fit."""

from collections.abc import Callable
from typing import Any

from nicegui import run as threads
from nicegui import ui

from melbo.evaluation.report import figures
from melbo.explorer.run_view import RunView

_GREY = "#8a949e"
_PALETTE = [
    "#4e9fd1", "#e08a3c", "#57a773", "#d1605e", "#9b7fc4",
    "#b98a5f", "#d987b5", "#b5a642", "#45b5aa", "#7d8fe0",
]  # fmt: skip


class FeatureMap:
    """A map of the features of a run, coloured by cluster; one is chosen by a click.

    Args:
        run: The run.
        chosen: Called with the index of a feature that was chosen.
    """

    def __init__(self, run: RunView, chosen: Callable[[int], None]) -> None:
        self._run, self._chosen = run, chosen
        self._chart: ui.echart | None = None

    async def draw(self, index: int) -> None:
        """Draw the map where nothing else is drawn; the first time takes seconds.

        Args:
            index: The chosen feature.
        """
        spinner = ui.spinner(size="lg")
        await threads.io_bound(lambda: self._run.map)
        spinner.delete()
        ui.label(
            "Directions by cosine (t-SNE): neighbours are alike, distances between groups mean "
            "nothing. Colours are clusters; grey features are in none."
        ).classes("m-muted")
        self._chart = ui.echart(self._options(index), on_point_click=self._clicked)
        self._chart.classes("m-map").props("data-testid=map")

    def choose(self, index: int) -> None:
        """Show which feature is chosen.

        Args:
            index: The feature.
        """
        if self._chart is not None:
            self._chart.options["series"] = self._series(index)

    def _clicked(self, event: Any) -> None:
        self._chosen(int(event.data["feature"]))

    def _options(self, index: int) -> dict[str, Any]:
        hidden = {"show": False, "scale": True}
        return {
            "animation": False,
            "tooltip": {"trigger": "item", "formatter": "{b}"},
            "grid": {"left": 8, "right": 8, "top": 8, "bottom": 8},
            "xAxis": hidden,
            "yAxis": hidden,
            "series": self._series(index),
        }

    def _series(self, index: int) -> list[dict[str, Any]]:
        ring = {"borderColor": "#d1243a", "borderWidth": 3}
        points = []
        for row in self._run.rows:
            colour = _GREY if row.cluster is None else _PALETTE[row.cluster % len(_PALETTE)]
            style = {"color": colour, "opacity": 0.5 if row.flag == "inert" else 0.9}
            here = row.index == index
            points.append(
                {
                    "name": f"{row.index} · {self._run.called(row.index)}",
                    "value": self._run.map[row.index],
                    "feature": row.index,
                    "symbolSize": 18 if here else 9,
                    "itemStyle": style | ring if here else style,
                }
            )
        return [{"type": "scatter", "data": points}]


def draw_curves(run: RunView) -> None:
    """Draw the curves of calibration and training.

    Args:
        run: The run.
    """
    drawn = {} if run.features is None else figures(run.record, run.features.scale)
    for name in ("calibration", "training"):
        ui.label(name.capitalize()).classes("m-head")
        if name in drawn:
            # the picture is drawn by melbo itself
            ui.html(str(drawn[name]), sanitize=False).classes("m-figure")
        else:
            ui.label("The run holds no such curve.").classes("m-muted")
