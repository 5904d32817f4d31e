"""Pages of the explorer, and the line on top of each."""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from nicegui import ui
from nicegui.events import ValueChangeEventArguments

from melbo.explorer.opened import Opened
from melbo.explorer.run_view import RunView
from melbo.explorer.steered import Models
from melbo.explorer.web.findings import draw_findings
from melbo.explorer.web.run_panel import RunPanel

_STYLE = files("melbo.explorer.web").joinpath("page.css").read_text(encoding="utf-8")
_BESIDE = "/beside"
_ACCENT = "#2b86a5"


def define_pages(opened: Opened, models: Models) -> None:
    """Define the pages: one for each audit, one for each run, one for two runs beside each other.

    Args:
        opened: All that is open.
        models: Models of runs.
    """

    @ui.page("/", title="melbo explore", dark=None)
    def start() -> None:
        """Show the first audit, or else the first run."""
        if opened.audits:
            audit_page(0)
        else:
            run_page()

    @ui.page("/audit", title="melbo explore", dark=None)
    def audit_page(number: int = 0) -> None:
        """Show the findings of an audit."""
        with _frame(opened, f"/audit?number={number}"):
            if 0 <= number < len(opened.audits):
                draw_findings(opened, opened.audits[number])
            else:
                ui.label("There is no such audit here.")

    @ui.page("/run", title="melbo explore", dark=None)
    def run_page(name: str = "", feature: int | None = None) -> None:
        """Show a run."""
        name = name or next(iter(opened.runs), "")
        with _frame(opened, _address(name)):
            run = opened.runs.get(name)
            if run is None:
                ui.label("There is no such run here.")
                return
            _title(name, run)

            def remember(index: int) -> None:
                ui.navigate.history.replace(f"{_address(name)}&feature={index}")

            RunPanel(run, models, feature, chosen=remember)

    @ui.page(_BESIDE, title="melbo explore", dark=None)
    def beside(left: str = "", right: str = "") -> None:
        """Show two runs beside each other."""
        names = list(opened.runs)
        sides = [left or names[0], right or names[-1]]
        with _frame(opened, _BESIDE):
            if not set(sides) <= set(names):
                ui.label("There is no such run here.")
                return
            _beside(opened, models, sides)


def _beside(opened: Opened, models: Models, sides: list[str]) -> None:
    """Draw two runs beside each other."""
    runs = [opened.runs[name] for name in sides]
    panels: list[RunPanel] = []
    hints: list[ui.row] = []

    def compare(here: int) -> Callable[[int], None]:
        def chosen(index: int) -> None:
            hints[1 - here].clear()
            found = runs[here].nearest_in(runs[1 - here], index)
            if found is None:
                return
            other, cosine = found
            with hints[1 - here]:
                text = f"most like {index} of the other run: {other} (cos {cosine:.2f})"
                show = panels[1 - here].choose
                ui.button(text, on_click=lambda: show(other)).props("flat dense no-caps")

        return chosen

    def go(side: int) -> Callable[[ValueChangeEventArguments[Any]], None]:
        def changed(event: ValueChangeEventArguments[Any]) -> None:
            wanted = dict(zip(("left", "right"), sides, strict=True))
            wanted["right" if side else "left"] = event.value
            ui.navigate.to(f"{_BESIDE}?{urlencode(wanted)}")

        return changed

    with ui.element("div").classes("m-sides"):
        for side, run in enumerate(runs):
            with ui.column().classes("m-full"):
                ui.select(list(opened.runs), value=sides[side], on_change=go(side)).props("dense")
                _title(sides[side], run)
                hints.append(ui.row())
                panels.append(
                    RunPanel(run, models, None, f"side{side}", False, chosen=compare(side))
                )


def _frame(opened: Opened, here: str) -> ui.element:
    """Draw the line on top of a page, and the room for the rest."""
    ui.colors(primary=_ACCENT)
    ui.add_css(_STYLE)
    with ui.header().classes("m-nav"):
        ui.label("melbo").classes("m-brand")
        links = [
            (f"findings: {audit.name}", f"/audit?number={i}")
            for i, audit in enumerate(opened.audits)
        ]
        links += [(name, _address(name)) for name in opened.runs]
        if len(opened.runs) > 1:
            links.append(("side by side", _BESIDE))
        for text, address in links:
            ui.link(text, address).classes("here" if address == here else "")
    aside = [path for labels in opened.labels for path in labels.set_aside]
    room = ui.column().classes("m-page")
    with room:
        for path in aside:
            _warn(path)
    return room


def _warn(path: Path) -> None:
    ui.label(
        f"Labels that could not be read, or were about other features, were set aside as {path}."
    ).classes("text-warning").props("data-testid=set-aside")


def _title(name: str, run: RunView) -> None:
    """Draw the name of a run and how many features it has."""
    model = run.provenance.model_name or "no language model"
    told = f"{run.num} feature{'' if run.num == 1 else 's'}"
    if run.ranking is not None:
        active = sum(row.flag == "active" for row in run.rows)
        order = run.ranking["settings"]["order"].partition(":")[0]
        told += f", {active} active; ordered by {order}"
    ui.label(f"{name} · {model} · {told}").classes("m-muted")


def _address(name: str) -> str:
    return f"/run?name={quote(name, safe='')}"
