"""The screen of a conversation: lines read and edited, words wrapped, replies that can be stopped.

Where standard input or output is no terminal, lines are read and text is written as they are.
"""

import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import click
from rich.cells import cell_len

if TYPE_CHECKING:
    from prompt_toolkit.history import History

_PIECES = re.compile(r"\n|[^\S\n]+|\S+")


class Screen:
    """A plain screen: a pipe, say."""

    def read(self, prompt: str) -> str:
        """Read a line.

        Args:
            prompt: Text that is printed before it.

        Raises:
            EOFError: The input has ended.
        """
        return input(prompt)

    def writer(self) -> Callable[[str], None]:
        """Function that writes a text, piece by piece."""
        return _write

    @contextmanager
    def stoppable(self) -> Iterator[Event]:
        """Context with an event that nobody sets: Ctrl-C ends the program."""
        yield Event()


class Terminal(Screen):
    """A terminal: lines can be edited and are remembered, words wrap, Ctrl-C stops a reply.

    Args:
        words: Words that Tab completes at the beginning of a line.
    """

    def __init__(self, words: Sequence[str]) -> None:
        # imported here: pipes do not need it
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.key_binding import KeyBindings

        keys = KeyBindings()

        @keys.add("escape", "enter")
        def _(event: Any) -> None:
            event.current_buffer.insert_text("\n")

        self._session: PromptSession[str] = PromptSession(
            history=_history(),
            completer=WordCompleter(list(words), sentence=True),
            complete_while_typing=False,
            enable_history_search=True,
            key_bindings=keys,
            prompt_continuation=lambda width, *_: " " * width,
        )

    def read(self, prompt: str) -> str:
        """Read a message of one line or more (Alt-Enter), again after Ctrl-C.

        Args:
            prompt: Text that is printed before it.
        """
        while True:
            try:
                return self._session.prompt(prompt)
            except KeyboardInterrupt:
                click.echo("(Ctrl-D or /quit ends)", err=True)

    def writer(self) -> Callable[[str], None]:
        """Function that writes a text, piece by piece, wrapped at the terminal's width."""
        return Wrapped(shutil.get_terminal_size().columns, _write)

    @contextmanager
    def stoppable(self) -> Iterator[Event]:
        """Context with an event that Ctrl-C sets."""
        stop = Event()
        before = signal.signal(signal.SIGINT, lambda *_: stop.set())
        try:
            yield stop
        finally:
            signal.signal(signal.SIGINT, before)


class Wrapped:
    """Writer of a text that comes in pieces; no word is broken by the end of a line.

    Args:
        width: Width of a line in cells.
        write: Function that writes text.
    """

    def __init__(self, width: int, write: Callable[[str], None]) -> None:
        self._width, self._write = width, write
        self._column, self._space = 0, ""

    def __call__(self, text: str) -> None:
        """Write the next piece of the text; a word is in one piece."""
        out = ""
        for piece in _PIECES.findall(text.expandtabs(4)):
            if piece == "\n":
                out, self._column, self._space = out + "\n", 0, ""
            elif piece.isspace():
                self._space += piece
            else:
                if self._column and self._column + cell_len(self._space + piece) > self._width:
                    out, self._column, self._space = out + "\n", 0, ""
                out += self._space + piece
                # a word that is longer than a line is broken by the terminal
                self._column = (self._column + cell_len(self._space + piece) - 1) % self._width + 1
                self._space = ""
        self._write(out)


def screen_here(words: Sequence[str]) -> Screen:
    """The screen of this program.

    Args:
        words: Words that Tab completes at the beginning of a line.
    """
    if sys.stdin.isatty() and sys.stdout.isatty():
        return Terminal(words)
    return Screen()


def _write(text: str) -> None:
    click.echo(text, nl=False)


def _history() -> "History":
    """Lines of earlier conversations, in the user's state folder where one can write to it."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    path = Path(state) / "melbo" / "chat_history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # messages are nobody else's business
        path.touch(mode=0o600)
        path.open("a").close()
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))
