"""A conversation with a steered model in the terminal."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

import click
from torch import Tensor
from transformers import StoppingCriteriaList, TextStreamer

from melbo.cli.chat_features import listing
from melbo.cli.chat_screen import Screen, screen_here
from melbo.cli.terminal import is_broken
from melbo.errors import MelboError
from melbo.explorer.steered import Stopped
from melbo.features.conversation import Turn, answer, conversation_form
from melbo.features.generate import check_temperature
from melbo.features.steerable import Steerable, check_strength
from melbo.models.edits import Edit, Where
from melbo.models.language_model import LanguageModel
from melbo.models.text.prompts import Prompts
from melbo.records import write_atomically

_HINT = "say something, or /help; /quit ends"
#: Commands, each with what it takes and what it does.
COMMANDS = {
    "/features": ("[N]", "list features: the first 20, or N of them"),
    "/steer": ("N [X]", "steer with feature N at X times the scale"),
    "/feature": ("N", "steer with feature N, as strongly as before"),
    "/strength": ("X", "steer at X times the scale; less than 0 steers backwards"),
    "/off": ("", "do not steer"),
    "/both": ("", "show the unsteered reply before the steered one, or no longer"),
    "/system": ("TEXT", "set the system message; without a text, show it"),
    "/again": ("", "reply to the last message again, steered as it is now"),
    "/undo": ("", "take back the last message and its reply"),
    "/reset": ("", "forget the conversation"),
    "/save": ("FILE", "write the conversation to a new file"),
    "/help": ("", "show this list"),
    "/quit": ("", "end, as Ctrl-D does"),
}
_HELP = "\n".join(f"{f'{name} {takes}':<16}{does}" for name, (takes, does) in COMMANDS.items())
_NUM_LISTED = 20


@dataclass(frozen=True)
class Exchange:
    """A message with its reply.

    Attributes:
        message: Message of the user.
        steering: State that the model was steered in, in words.
        reply: The reply, which the conversation goes on with.
        unsteered: The unsteered reply beside it, if there is one.
    """

    message: str
    steering: str
    reply: str
    unsteered: str | None = None


class Chat:
    """A conversation with a model; the steering feature can change between its turns.

    What is fed is read and checked as the prompts of a fit are.

    Args:
        lm: The model.
        features: Its features.
        feature: Index of the feature that steers, or None.
        strength: Multiple of the scale.
        max_new_tokens: Length of a reply at most.
        where: Tokens to steer, see `steer`; earlier turns count as prompt.
        temperature: 0 for greedy replies, see `melbo.generate`.
        form: Prompts whose system message, chat template and beginning of a reply are used; those
            that the features were fitted with, if left out.
        folder: Run folder of these very features, which knows their names; None if there is none.

    Attributes:
        exchanges: The conversation so far.

    Raises:
        MelboError: The tokenizer has no chat template or prompts are to be read without one, the
            features do not act there, or the strength or the temperature is no number that can be
            worked with.
    """

    def __init__(
        self,
        lm: LanguageModel,
        features: Steerable,
        feature: int | None,
        strength: float,
        max_new_tokens: int,
        where: Where = "all",
        temperature: float = 0.0,
        form: Prompts | None = None,
        folder: Path | None = None,
    ) -> None:
        self._form = conversation_form(lm, features, form)
        check_strength(strength)
        check_temperature(temperature)
        features[0].edit(where=where)  # refuses a place that such features do not act at
        self.lm, self.features, self._folder = lm, features, folder
        self.where, self.temperature = where, temperature
        self.feature, self.strength = feature, strength
        self.max_new_tokens = max_new_tokens
        self._both = False
        self.exchanges: list[Exchange] = []

    @property
    def turns(self) -> list[Turn]:
        """The conversation so far as it is fed to the model, without the system message."""
        return [
            turn
            for exchange in self.exchanges
            for turn in (_user(exchange.message), _assistant(exchange.reply))
        ]

    def loop(self) -> None:
        """Read turns from standard input until /quit or the end of the input.

        In a terminal, Ctrl-C ends the reply that is being made, and nothing else.
        """
        screen = screen_here(list(COMMANDS))
        click.echo(_HINT, err=True)
        while True:
            try:
                line = screen.read(f"[{self._state()}] you: ").strip()
            except EOFError:
                click.echo()
                return
            if line == "/quit":
                return
            if line == "/again" and self.exchanges:
                self._show(screen, self.again)
            elif line.startswith("/"):
                click.echo(self.command(line), err=True)
            elif line:
                self._show(screen, lambda *where, text=line: self.reply(text, *where))

    def _show(self, screen: Screen, reply: Callable[[Screen, Event], str]) -> None:
        """Show a reply as it is made, or say why it cannot be made."""
        try:
            with screen.stoppable() as stop:
                reply(screen, stop)
        except MelboError as err:
            # a conversation that has become too long, say: /reset lets it go on
            click.echo(f"error: {err}", err=True)
        else:
            if stop.is_set():
                click.echo("stopped", err=True)

    def command(self, line: str) -> str:
        """Carry out a line that begins with a slash; returns what is to be printed."""
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name not in COMMANDS:
            return f"there is no command {name}: /help lists them"
        try:
            return self._carry_out(name, rest)
        except MelboError as err:
            return str(err)
        except (ValueError, IndexError):
            takes, does = COMMANDS[name]
            return f"{name} needs a number: {name} {takes}, {does}"

    def _carry_out(self, name: str, rest: str) -> str:
        """Carry out a command.

        Args:
            name: Its name.
            rest: The rest of its line.

        Raises:
            MelboError: The rest cannot be worked with, or a file cannot be written.
            ValueError: The rest is not the numbers that it takes.
        """
        match name:
            case "/features":
                num = int(rest) if rest else _NUM_LISTED
                return listing(self.features, self._folder, num, self.feature, self.strength)
            case "/steer":
                feature, *strength = rest.split(maxsplit=1)
                self._steer(int(feature), float(strength[0]) if strength else self.strength)
            case "/feature":
                self._steer(int(rest), self.strength)
            case "/strength":
                self._steer(self.feature, float(rest))
            case "/off":
                self.feature = None
            case "/both":
                self._both = not self._both
                shown = "both replies" if self._both else "one reply"
                return f"{shown} to each message from now on"
            case "/system":
                return self._system(rest)
            case "/undo" | "/again":
                if not self.exchanges:
                    return "nothing has been said yet"
                return f"taken back: {self.exchanges.pop().message}"
            case "/reset":
                self.exchanges.clear()
            case "/save":
                return self._save(rest)
            case _:
                return _HELP
        return self._state()

    def _steer(self, feature: int | None, strength: float) -> None:
        """Steer with a feature from now on, or with none.

        Raises:
            MelboError: There is no such feature, or the strength is no number that can be used.
        """
        feature = None if feature is None else self.features.check_index(feature)
        check_strength(strength)
        self.feature, self.strength = feature, strength

    def _system(self, text: str) -> str:
        """Set the system message, unless there is no text; returns it in words.

        Raises:
            MelboError: The template takes no system message, or it is not valid UTF-8.
        """
        if text:
            _refuse_broken(text)
            form = replace(self._form, system=text)
            form.conversation(self.lm, [*self.turns, _user("?")])  # refuses one that cannot be read
            self._form = form
        said = self._form.system
        return "system message: " + ("the template’s own" if said is None else said or "(empty)")

    def _save(self, name: str) -> str:
        """Write the conversation to a new file.

        Raises:
            MelboError: No file is named, there is one already, or it cannot be written.
        """
        if not name:
            raise MelboError("/save needs a file: /save talk.md")
        path = Path(name).expanduser()
        if path.exists():
            raise MelboError(f"{path} is there already: name another file")
        write_atomically({path: self.transcript().encode()})
        return f"saved as {path}"

    def transcript(self) -> str:
        """The conversation as Markdown."""
        parts = [f"# Conversation with {self.lm.name}"]
        if self._folder is not None:
            parts.append(f"Features of {self._folder}.")
        if self._form.system:
            parts.append(f"**system:** {self._form.system}")
        for exchange in self.exchanges:
            parts.append(f"**you:** {exchange.message}")
            if exchange.unsteered is not None:
                parts.append(f"**unsteered:** {exchange.unsteered}")
            parts.append(f"**{exchange.steering}:** {exchange.reply}")
        return "\n\n".join(parts) + "\n"

    def again(self, screen: Screen | None = None, stop: Event | None = None) -> str:
        """Reply to the last message again, as the model is steered now; see `reply`.

        Raises:
            MelboError: As `reply`; the last reply then stays.
        """
        last = self.exchanges.pop()
        before = len(self.exchanges)
        try:
            return self.reply(last.message, screen, stop)
        finally:
            if len(self.exchanges) == before:
                self.exchanges.append(last)

    def reply(self, text: str, screen: Screen | None = None, stop: Event | None = None) -> str:
        """Reply to one more turn of the user.

        Args:
            text: The user's turn.
            screen: Screen that the reply is printed on as it comes; None to print nothing.
            stop: Ends the reply once it is set. What has been said by then is the reply; if nothing
                has, the turn is dropped.

        Raises:
            MelboError: The turn is not valid UTF-8, or the conversation has become too long.
        """
        _refuse_broken(text)
        stop = Event() if stop is None else stop
        beside = None
        if self._both and self.feature is not None:
            beside = self._said(text, [], "unsteered: ", screen, stop)
            if stop.is_set():
                return beside
        label = f"{self._state()}: " if beside is not None else ""
        said = self._said(text, self._edits(), label, screen, stop)
        if said or not stop.is_set():
            self.exchanges.append(Exchange(text, self._state(), said, beside))
        return said

    def _said(
        self, text: str, edits: list[Edit], label: str, screen: Screen | None, stop: Event
    ) -> str:
        """A reply to one more turn, under edits; see `reply`."""
        more: dict[str, Any] = {}
        if screen is not None:
            write = screen.writer()
            write(label)
            more["streamer"] = _Streamer(self.lm.tokenizer, self._form.prefix or "", write)
        return answer(
            self.lm,
            self._form,
            [*self.turns, _user(text)],
            edits,
            self.max_new_tokens,
            self.temperature,
            stopping_criteria=StoppingCriteriaList([Stopped((stop,))]),
            **more,
        )

    def _edits(self) -> list[Edit]:
        """The edit by which the chosen feature steers, if there is one."""
        if self.feature is None:
            return []
        self.features.check_model(self.lm)
        return [self.features[self.feature].edit(strength=self.strength, where=self.where)]

    def _state(self) -> str:
        """The steering feature and its strength, in words."""
        if self.feature is None:
            return "unsteered"
        return f"feature {self.feature} × {self.strength:g}"


def _user(text: str) -> Turn:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Turn:
    return {"role": "assistant", "content": text}


def _refuse_broken(text: str) -> None:
    """Refuse text that is not valid UTF-8.

    Raises:
        MelboError: It is not.
    """
    if is_broken(text):
        raise MelboError("this turn is not valid UTF-8: write it anew")


class _Streamer(TextStreamer):
    """Writer of a reply as it grows, from the beginning that it is given.

    Args:
        tokenizer: The tokenizer.
        begun: That beginning.
        write: Function that writes text.
    """

    def __init__(self, tokenizer: Any, begun: str, write: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._begun, self._write = begun, write

    def put(self, value: Tensor) -> None:
        """Take the prompt, which has been read without complaint, then token after token."""
        if self.next_tokens_are_prompt:
            self._write(self._begun)
        super().put(value)  # type: ignore[no-untyped-call]

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Write words that will not change any more, and the end of the last line."""
        self._write(text + "\n" * stream_end)
