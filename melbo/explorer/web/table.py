"""The table of features: ordered by any score, filtered by flag, text and labels."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from nicegui import ui

from melbo.errors import MelboError
from melbo.evaluation.columns import Column
from melbo.evaluation.scores import FLAGS
from melbo.explorer.run_view import Row, RunView

_STAR = "★"
_MINE = {"all": "all", "star": "starred", "mine": "with a label or note"}
# the arrow keys go from feature to feature
_FOCUSED = """(p) => {
  const row = p.api.getDisplayedRowAtIndex(p.rowIndex);
  if (row) { row.setSelected(true); emitEvent(EVENT, row.data.id); }
}"""


class FeatureTable:
    """The features of a run as a table.

    Args:
        run: The run.
        chosen: Called with the index of a feature that was chosen.
        event: Name of the browser's event for it, another one for each table of a page.
    """

    def __init__(self, run: RunView, chosen: Callable[[int], None], event: str) -> None:
        self._run = run
        self._rows = {row.index: row for row in run.rows}
        with ui.row().classes("m-line"):
            self._text = ui.input("text in replies", on_change=self._filter)
            self._text.props("dense clearable debounce=250 type=search").classes("m-grow")
            self._text.set_enabled(run.ranking is not None)
            flags: dict[str, str] = {"": "all", **{flag: flag for flag in FLAGS}}
            self._flag = ui.toggle(flags, value="", on_change=self._filter)
            self._flag.props("dense no-caps unelevated").set_visibility(run.ranking is not None)
            self._mine = ui.select(_MINE, value="all", label="labels", on_change=self._filter)
            self._mine.props("dense").classes("m-select")
            self._count = ui.label().classes("m-muted").props("data-testid=count")
        options = {
            "columnDefs": self._columns(),
            "rowData": [self._cells(row) for row in self._rows.values()],
            ":getRowId": "(p) => String(p.data.id)",
            "rowSelection": {"mode": "singleRow", "checkboxes": False},
            "defaultColDef": {"resizable": True, "suppressHeaderMenuButton": True},
            "enableCellTextSelection": True,
            "suppressCellFocus": False,
            "animateRows": False,
            "rowHeight": 32,
            "headerHeight": 32,
            "groupHeaderHeight": 28,
            "overlayNoRowsTemplate": "no such feature",
            ":onCellFocused": _FOCUSED.replace("EVENT", repr(event)),
        }
        self._grid = ui.aggrid(options, auto_size_columns=False).classes("m-grid")
        self._grid.on("cellClicked", self._clicked, args=["colId", "data"])
        ui.on(event, lambda e: chosen(int(e.args)))
        self._tell(len(self._rows))

    def refresh(self, index: int) -> None:
        """Show a feature's label anew."""
        row = self._cells(self._rows[index])
        self._grid.run_grid_method("applyTransaction", {"update": [row]})

    def _clicked(self, event: Any) -> None:
        """Star a feature, or take its star."""
        if event.args["colId"] != "star":
            return
        index = int(event.args["data"]["id"])
        label = self._run.labels[str(index)]
        try:
            self._run.labels.put(str(index), replace(label, star=not label.star))
        except MelboError as err:
            ui.notify(str(err), type="negative")
        self.refresh(index)

    def _filter(self) -> None:
        """Show the features that text, flag and labels leave."""
        said = self._run.where_said(self._text.value or "")
        shown = [
            self._cells(row)
            for row in self._rows.values()
            if row.index in said
            and self._flag.value in ("", row.flag)
            and self._is_mine(str(row.index))
        ]
        self._grid.run_grid_method("setGridOption", "rowData", shown)
        self._tell(len(shown))

    def _is_mine(self, key: str) -> bool:
        label = self._run.labels[key]
        if self._mine.value == "star":
            return label.star
        return self._mine.value == "all" or bool(label.name or label.note)

    def _tell(self, shown: int) -> None:
        self._count.set_text(f"{shown} of {len(self._rows)}")

    def _cells(self, row: Row) -> dict[str, Any]:
        """Cells of a row."""
        label = self._run.labels[str(row.index)]
        return {
            "id": row.index,
            "star": _STAR if label.star else "☆",
            "name": label.name or row.name,
            "words": row.name,
            "flag": row.flag,
            **{f"v{i}": value for i, value in enumerate(row.values)},
        }

    def _columns(self) -> list[dict[str, Any]]:
        """Definitions of the columns."""
        hint = "own label, or else words that the replies hold and other replies do not"
        found: list[dict[str, Any]] = [
            {"headerName": _STAR, "field": "star", "width": 38, "pinned": "left"},
            {"headerName": "#", "field": "id", "width": 56, "pinned": "left"},
            {
                "headerName": "name",
                "field": "name",
                "width": 190,
                "filter": True,
                "headerTooltip": hint,
                "tooltipField": "words",
            },
        ]
        if self._run.ranking is not None:
            found.append({"headerName": "flag", "field": "flag", "width": 74})
        groups: dict[str, list[dict[str, Any]]] = {}
        for i, column in enumerate(self._run.columns):
            groups.setdefault(column.group, []).append(_number(column, f"v{i}"))
        found += [{"headerName": group, "children": each} for group, each in groups.items()]
        return [
            column if "children" in column else {"sortable": True, **column} for column in found
        ]


def _number(column: Column, field: str) -> dict[str, Any]:
    """Definition of a column of numbers."""
    digits = "p.value.toFixed(2)" if column.split else "String(Number(p.value.toPrecision(3)))"
    first, then = ("desc", "asc") if column.score.first == "high" else ("asc", "desc")
    return {
        "headerName": column.name,
        "headerTooltip": column.score.hint,
        "field": field,
        "width": 88,
        "type": "rightAligned",
        "sortable": True,
        "sortingOrder": [first, then, None],
        ":valueFormatter": f"(p) => p.value == null ? '' : {digits}.replace('-', '−')",
    }
