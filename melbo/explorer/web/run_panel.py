"""A run on a page: its table, and the feature that is chosen from it."""

from collections.abc import Callable

from nicegui import ui

from melbo.explorer.run_view import RunView
from melbo.explorer.steered import Models
from melbo.explorer.web.detail import Detail
from melbo.explorer.web.table import FeatureTable

# brings the feature into view where it stands below the table
_SHOW = "if (innerWidth < 1100) document.getElementById('{}').scrollIntoView()"


class RunPanel:
    """A run's features, and one of them in detail.

    Args:
        run: The run.
        models: Models of runs.
        index: The feature that is shown first; that at the head of the table if left out.
        place: Name of the panel, another one for each on a page.
        wide: Whether table and feature may stand beside each other.
        chosen: Called with the index of a feature that was chosen.
    """

    def __init__(
        self,
        run: RunView,
        models: Models,
        index: int | None = None,
        place: str = "run",
        wide: bool = True,
        chosen: Callable[[int], None] = lambda index: None,
    ) -> None:
        self._chosen, self._place = chosen, f"detail-{place}"
        first = run.rows[0].index if index is None or index not in run.names else index
        with ui.element("div").classes("m-run m-wide" if wide else "m-run"):
            with ui.column().classes("m-full"):
                table = FeatureTable(run, self.choose, f"chosen-{place}")
            with ui.column().classes("m-detail m-full").props(f"id={self._place}"):
                self._detail = Detail(run, models, first, self._click, table.refresh)

    def choose(self, index: int) -> None:
        """Show another feature.

        Args:
            index: The feature.
        """
        self._detail.choose(index)
        self._chosen(index)

    def _click(self, index: int) -> None:
        """Show a feature that was chosen in the detail of another."""
        self.choose(index)
        ui.run_javascript(_SHOW.format(self._place))
