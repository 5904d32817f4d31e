"""One feature of a run: its label, replies, conversation, neighbours, place and curves."""

from collections.abc import Callable
from typing import Any

from nicegui import ui
from nicegui.events import ValueChangeEventArguments

from melbo.explorer.run_view import RunView
from melbo.explorer.steered import Models
from melbo.explorer.web.charts import FeatureMap, draw_curves
from melbo.explorer.web.chat import Chat
from melbo.explorer.web.label import label_fields
from melbo.explorer.web.markup import replies

_TABS = ("replies", "chat", "similar", "map", "curves")
_NEAR = 12


class Detail:
    """One feature of a run, beside the table that it was chosen from.

    Args:
        run: The run.
        models: Models of runs.
        index: The feature.
        choose: Called with the index of another feature that was chosen.
        labelled: Called with the index of a feature whose label has changed.
    """

    def __init__(
        self,
        run: RunView,
        models: Models,
        index: int,
        choose: Callable[[int], None],
        labelled: Callable[[int], None],
    ) -> None:
        self._run, self._index = run, index
        self._choose, self._labelled = choose, labelled
        self._control = run.controls[0] if run.controls else None
        self._chat = Chat(run, models, index)
        self._map = FeatureMap(run, choose)
        self._drawn: set[str] = set()
        self._head()
        tabs = ui.tabs().props("dense no-caps align=left narrow-indicator").classes("m-tabs")
        with tabs:
            for name in _TABS:
                ui.tab(name)
        panels = ui.tab_panels(tabs, value=_TABS[0], animated=False)
        panels.classes("m-panels")
        with panels:
            self._panels = {name: ui.tab_panel(name).classes("m-panel") for name in _TABS}
        with self._panels["replies"]:
            self._replies()
        with self._panels["similar"]:
            self._similar()
        panels.on_value_change(lambda e: self._open(e.value))

    def choose(self, index: int) -> None:
        """Show another feature.

        Args:
            index: The feature.
        """
        self._index = index
        self._head.refresh()
        self._replies.refresh()
        self._similar.refresh()
        self._chat.choose(index)
        self._map.choose(index)

    async def _open(self, name: str) -> None:
        """Draw what takes time when it is first looked at."""
        if name in self._drawn:
            return
        self._drawn.add(name)
        with self._panels[name]:
            if name == "chat":
                await self._chat.draw()
            elif name == "map":
                await self._map.draw(self._index)
            elif name == "curves":
                draw_curves(self._run)

    @ui.refreshable_method
    def _head(self) -> None:
        words = self._run.names.get(self._index, "")
        with ui.row().classes("m-line"):
            ui.label(f"Feature {self._index}").classes("m-head").props("data-testid=feature")
            if self._run.ranking is not None:
                ui.label(words or "no distinctive words").classes("m-muted")
        index = self._index
        label_fields(self._run.labels, str(index), lambda: self._labelled(index))

    @ui.refreshable_method
    def _replies(self) -> None:
        if self._run.ranking is None:
            ui.label("This run has no replies yet: melbo rank makes them.").classes("m-muted")
            return
        names = {i: f"random direction {i}" for i in self._run.controls}
        ui.select(names, value=self._control, label="control", on_change=self._compare).props(
            "dense options-dense"
        ).classes("m-select")
        said = self._run.replies(self._index, self._control)
        # all of it is escaped
        ui.html(str(replies(said, self._index, self._control)), sanitize=False).classes("m-full")

    def _compare(self, event: ValueChangeEventArguments[Any]) -> None:
        """Show another random direction."""
        self._control = event.value
        self._replies.refresh()

    @ui.refreshable_method
    def _similar(self) -> None:
        for title, found in zip(
            ("Similar", "Opposite"), self._run.alike(self._index, _NEAR), strict=True
        ):
            ui.label(title).classes("m-head")
            for index, cosine in found:
                text = f"{index} · {self._run.called(index)} (cos {cosine:.2f})"
                button = ui.button(text.replace("-", "−"))
                button.on_click(lambda index=index: self._choose(index))
                button.props("flat dense align=left").classes("m-near")
            if not found:
                ui.label("none").classes("m-muted")
