"""Fields for a label of one's own: star, name, note."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from nicegui import ui

from melbo.errors import MelboError
from melbo.explorer.labels import Labels


def label_fields(labels: Labels, key: str, changed: Callable[[], None]) -> None:
    """Draw a star, a field for a name and one for a note; changes are kept at once.

    Args:
        labels: The labels.
        key: The feature or finding.
        changed: Called after a change.
    """

    def keep(**change: Any) -> None:
        try:
            labels.put(key, replace(labels[key], **change))
        except MelboError as err:
            ui.notify(str(err), type="negative")
        changed()

    def turn() -> None:
        keep(star=not labels[key].star)
        star.props(f"icon={icon()}")

    def icon() -> str:
        return "star" if labels[key].star else "star_border"

    with ui.row().classes("m-line"):
        star = ui.button(icon=icon(), on_click=turn).props("flat round dense aria-label=star")
        name = ui.input("label", value=labels[key].name)
        name.on_value_change(lambda e: keep(name=e.value or ""))
        name.props("dense debounce=250").classes("m-grow")
        note = ui.textarea("note", value=labels[key].note)
        note.on_value_change(lambda e: keep(note=e.value or ""))
        note.props("dense autogrow debounce=250").classes("m-grow")
