"""A conversation with the steered model, beside one with the unsteered model."""

import asyncio
import secrets
from dataclasses import dataclass
from threading import Event

from nicegui import run as threads
from nicegui import ui

from melbo.errors import MelboError
from melbo.explorer.run_view import RunView
from melbo.explorer.steered import Models, SteeredModel
from melbo.features.conversation import Turn

_LONGEST, _STRONGEST = 128, 3.0


@dataclass
class _Side:
    """One of the two replies to a turn."""

    label: ui.label
    said: str = ""
    done: bool = False

    def begin(self) -> None:
        """Wait for a reply."""
        self.said, self.done = "", False
        self.label.set_text("…")

    def tell(self, text: str) -> None:
        """Show the reply so far."""
        self.said = text
        self.label.set_text(text)

    def end(self, shown: str) -> None:
        """Show the end of it."""
        self.done = True
        self.label.set_text(shown)


@dataclass(frozen=True)
class _Exchange:
    """A turn of the user, and the two replies to it."""

    asked: str
    steered: _Side
    unsteered: _Side


class Chat:
    """Two conversations with the model of a run, one under features, one without.

    All that steers belongs to this page. A page that is closed ends its reply.

    Args:
        run: The run.
        models: Models of runs.
        chosen: The feature that is offered.
    """

    def __init__(self, run: RunView, models: Models, chosen: int) -> None:
        self._run, self._models = run, models
        self._chosen = chosen
        self._mix: dict[int, float] = {}
        self._exchanges: list[_Exchange] = []
        self._stop = Event()
        self._model: SteeredModel | None = None
        ui.context.client.on_disconnect(self.stop)

    async def draw(self) -> None:
        """Load the model and draw the conversation, or say why there can be none."""
        with ui.row().classes("m-line") as waiting:
            ui.spinner(size="lg")
            ui.label("Loading the model …").classes("m-muted")
        try:
            self._model = await threads.io_bound(self._models.of, self._run.folder)
        except MelboError as err:
            ui.label(f"Nothing can be said here: {err}.").props("data-testid=readonly")
            ui.label("All else of the run can be read.").classes("m-muted")
        finally:
            waiting.delete()
        if self._model is not None:
            self._draw()

    def choose(self, index: int) -> None:
        """Offer another feature.

        Args:
            index: The feature.
        """
        self._chosen = index
        if self._model is not None:
            self._steering.refresh()

    def stop(self) -> None:
        """End the reply that is being made."""
        self._stop.set()

    def _draw(self) -> None:
        self._steering()
        with ui.row().classes("m-line"):
            self._longest = ui.number("tokens at most", value=_LONGEST, min=1, precision=0)
            self._temperature = ui.number("temperature", value=0.0, min=0.0, step=0.1)
            for field in (self._longest, self._temperature):
                field.props("dense").classes("m-short")
            self._live = ui.switch("reply again when strengths change", value=True)
        # the box stays at its end while replies grow
        with ui.element("div").classes("m-talk"):
            self._said = ui.column().classes("m-full")
        with ui.row().classes("m-line no-wrap"):
            self._asked = ui.input("say something").props("outlined dense").classes("m-grow")
            self._asked.on("keydown.enter", self._send)
            ui.button(icon="send", on_click=self._send).props("round dense aria-label=send")
            ui.button(icon="stop", on_click=self.stop).props("flat round dense aria-label=stop")
            ui.button(icon="delete_sweep", on_click=self._forget).props(
                'flat round dense aria-label="start over"'
            )

    @ui.refreshable_method
    def _steering(self) -> None:
        """Draw the features that steer, with their strengths."""
        for index in self._mix:
            self._strength(index)
        if not self._mix:
            ui.label("No feature steers: add one.").classes("m-muted")
        if self._chosen not in self._mix:
            ui.button(f"add feature {self._chosen}", icon="add", on_click=self._add).props(
                "outline dense no-caps"
            )

    def _strength(self, index: int) -> None:
        """Draw a feature that steers."""

        async def change(strength: float) -> None:
            self._mix[index] = strength
            await self._again()

        async def flip() -> None:
            slider.set_value(-slider.value)
            await change(slider.value)

        async def remove() -> None:
            del self._mix[index]
            self._steering.refresh()
            await self._again()

        with ui.element("div").classes("m-mix"):
            ui.label(f"{index} · {self._run.called(index)}").classes("ellipsis")
            slider = ui.slider(min=-_STRONGEST, max=_STRONGEST, step=0.1, value=self._mix[index])
            slider.props(f'aria-label="strength of {index}"')
            slider.on("change", lambda: change(slider.value))
            shown = ui.label().classes("m-value").props("data-testid=strength")
            shown.bind_text_from(slider, "value", _strength)
            with ui.row().classes("no-wrap"):
                small = "flat dense no-caps"
                sign = ui.button("±", on_click=flip).classes("m-sign")
                sign.props(f'{small} aria-label="flip sign of {index}"')
                ui.button(icon="close", on_click=remove).props(
                    f'{small} aria-label="remove {index}"'
                )

    async def _add(self) -> None:
        self._mix[self._chosen] = 1.0
        self._steering.refresh()
        await self._again()

    async def _send(self) -> None:
        """Take the user's turn, and reply on both sides."""
        asked = (self._asked.value or "").strip()
        if not asked:
            return
        self._asked.set_value("")
        with self._said:
            ui.label(asked).classes("m-turn").props("dir=auto")
            with ui.element("div").classes("m-said m-full"):
                sides = [_side("steered", "m-own"), _side("unsteered", "")]
        self._exchanges.append(_Exchange(asked, *sides))
        await self._reply(both=True)

    async def _again(self) -> None:
        """Reply to the last turn anew, where that is wanted."""
        if self._exchanges and self._live.value:
            await self._reply(both=False)

    async def _reply(self, both: bool) -> None:
        """Reply to the last turn: steered, then unsteered if wanted or not yet done."""
        self.stop()
        stop = self._stop = Event()
        last = self._exchanges[-1]
        sides = [(last.steered, self._turns(steered=True), dict(self._mix))]
        if both or not last.unsteered.done:
            sides.append((last.unsteered, self._turns(steered=False), {}))
        for side, _, _ in sides:
            side.begin()
        for side, turns, mix in sides:
            if stop.is_set():
                break
            try:
                await self._one(side, turns, mix, stop)
            except (MelboError, RuntimeError) as err:
                if not stop.is_set():
                    side.end(f"({str(err).splitlines()[0]})")
        # stopped by the user, not by another reply in its place
        if stop is self._stop and self._exchanges:
            for side, _, _ in sides:
                if not side.done and not side.said:
                    side.end("(stopped)")

    async def _one(
        self, side: _Side, turns: list[Turn], mix: dict[int, float], stop: Event
    ) -> None:
        """Stream one reply."""
        assert self._model is not None
        loop = asyncio.get_running_loop()

        def tell(text: str) -> None:
            if not stop.is_set() and not side.done:
                side.tell(text)

        def on_text(text: str) -> None:
            loop.call_soon_threadsafe(tell, text)

        said = await threads.io_bound(
            self._model.reply,
            turns,
            mix,
            int(self._longest.value or _LONGEST),
            float(self._temperature.value or 0.0),
            secrets.randbelow(2**31),
            on_text,
            stop,
        )
        if said is not None and not stop.is_set():
            side.tell(said)
            side.end(said if said.strip() else "(empty reply)")

    def _turns(self, steered: bool) -> list[Turn]:
        """The conversation of one side, up to the user's last turn."""
        turns: list[Turn] = []
        for exchange in self._exchanges[:-1]:
            side = exchange.steered if steered else exchange.unsteered
            turns += [_turn("user", exchange.asked), _turn("assistant", side.said)]
        return [*turns, _turn("user", self._exchanges[-1].asked)]

    def _forget(self) -> None:
        """Begin a new conversation."""
        self.stop()
        self._exchanges.clear()
        self._said.clear()


def _strength(value: float) -> str:
    return f"× {value:.1f}".replace("-", "−")


def _side(who: str, kind: str) -> _Side:
    with ui.element("div").classes(f"m-say {kind}").props(f"data-testid={who}"):
        ui.label(who).classes("m-who")
        return _Side(ui.label().props("dir=auto"))


def _turn(role: str, content: str) -> Turn:
    return {"role": role, "content": content}
