"""`melbo chat` on a terminal of its own: editing, history, Ctrl-C."""

import fcntl
import os
import pty
import re
import select
import subprocess
import termios
import time

import pytest
from command_line import SCRIPT, environment
from explored import model_with_room
from toys import directions

import melbo
from melbo import CausalMap, FeatureSet, Prompts

pytestmark = pytest.mark.slow

_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[=>])")
UP, CTRL_C, CTRL_D, ALT_ENTER = "\x1b[A", "\x03", "\x04", "\x1b\r"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run whose model never ends a reply by itself."""
    folder = tmp_path_factory.mktemp("talk")
    lm = melbo.load(model_with_room(folder / "model"), dtype="float32")
    cmap = CausalMap(lm, Prompts.chat(lm, ["What should I do"]), 1, 3)
    V, U = (directions(4, lm.width, seed) for seed in (0, 1))
    alpha = directions(1, 4)[0].abs()
    FeatureSet(V, U, alpha, 6.0, 1, 3, {"map": cmap.describe()}).save(folder / "run")
    return folder


class Talk:
    """A chat in a pseudo-terminal of 60 columns, which ends with its context."""

    def __init__(self, folder, state, *options):
        self._ours, theirs = pty.openpty()
        more = {"XDG_STATE_HOME": str(state), "TERM": "xterm", "COLUMNS": "60", "LINES": "24"}
        self._process = subprocess.Popen(
            [SCRIPT, "chat", "run", *map(str, options)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=folder,
            # nobody answers where the cursor is
            env={**environment(), **more, "PROMPT_TOOLKIT_NO_CPR": "1"},
            start_new_session=True,
            # Ctrl-C reaches those whose terminal this is
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        self._seen = ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        os.close(self._ours)

    def until(self, text, seconds=120):
        """Read until a text is there; returns what came before it."""
        end = time.monotonic() + seconds
        while text not in (plain := _ESCAPES.sub("", self._seen)):
            assert time.monotonic() < end, plain[-2000:]
            if select.select([self._ours], [], [], 0.1)[0]:
                self._seen += os.read(self._ours, 65536).decode(errors="replace")
        before, self._seen = plain.split(text, maxsplit=1)
        return before

    def type(self, text):
        os.write(self._ours, text.encode())

    def end(self):
        """Press Ctrl-D; returns the exit status."""
        self.type(CTRL_D)
        return self._process.wait(timeout=60)


def test_ctrl_c_stops_the_reply_and_not_the_conversation(folder, tmp_path):
    with Talk(folder, tmp_path, "--feature", 1, "--max-new-tokens", 150_000) as talk:
        talk.until("[feature 1 × 1] you:")
        talk.type("dog and sun\r")
        talk.until("\n")
        begun = talk.until("\n") + talk.until("\n")  # two lines of the reply
        talk.type(CTRL_C)
        rest = talk.until("stopped")
        assert "Traceback" not in rest
        lines = (begun + rest).splitlines()
        assert max(map(len, lines)) <= 60
        assert max(map(len, lines)) > 40
        # the conversation goes on, and knows the stopped reply
        talk.until("you:")
        talk.type("/undo\r")
        talk.until("taken back: dog and sun")
        # at the prompt, Ctrl-C only throws the line away
        talk.until("you:")
        talk.type("no such line" + CTRL_C)
        talk.until("Ctrl-D or /quit ends")
        talk.until("you:")
        talk.type("/off\r")
        talk.until("[unsteered] you:")
        assert talk.end() == 0


def test_lines_are_edited_and_remembered(folder, tmp_path):
    with Talk(folder, tmp_path, "--max-new-tokens", 2) as talk:
        talk.until("[unsteered] you:")
        talk.type("/steer 33\x7f 2\r")  # one character is rubbed out
        talk.until("[feature 3 × 2] you:")
        talk.type("dog" + ALT_ENTER + "cat\r")
        talk.until("] you:")
        talk.type(f"/save {tmp_path / 'talk.md'}\r")
        talk.until("saved as")
        talk.until("] you:")
        assert "**you:** dog\ncat\n\n**feature 3 × 2:**" in (tmp_path / "talk.md").read_text()
        assert talk.end() == 0
    assert (tmp_path / "melbo" / "chat_history").stat().st_mode & 0o777 == 0o600
    with Talk(folder, tmp_path, "--max-new-tokens", 2) as talk:
        talk.until("[unsteered] you:")
        talk.type("/ste" + UP)  # the last line that begins so
        talk.type("\r")
        talk.until("[feature 3 × 2] you:")
        assert talk.end() == 0
