"""`melbo chat` as its users meet it."""

import re

import pytest
from command_line import contents, real

from melbo.cli import chat


@pytest.mark.slow
def test_a_conversation_through_a_pipe(home):
    lines = [
        "hello you",
        "/feature 1",
        "hello you",
        "/strength 0",
        "hello you",
        "/feature 99",
        "/strength",
        "/bogus",
        "/",
        "/help",
        "/reset",
        "/off",
    ]
    before = contents(home / "run")
    stdin = "\n".join([*lines, "", "dog", "/quit", "never read", ""])
    ended = real("chat", "run", "--max-new-tokens", 4, stdin=stdin, cwd=home)
    assert ended.code == 0
    assert "Traceback" not in ended.err
    said = ended.err.splitlines()
    assert "/help" in said[0]
    assert said[1:3] == ["feature 1 × 1", "feature 1 × 0"]
    assert "expected 0 to 3" in said[3]
    assert "/strength needs a number" in said[4]
    assert said[5] == "there is no command /bogus: /help lists them"
    assert said[6] == "there is no command /: /help lists them"
    assert [line.split()[0] for line in said[7:-2]] == list(chat.COMMANDS)
    assert said[-2:] == ["feature 1 × 0", "unsteered"]
    states = re.findall(r"\[([^\]]*)\] you: ", ended.out)
    assert states[:2] == ["unsteered", "unsteered"]
    assert states[2:5] == ["feature 1 × 1", "feature 1 × 1", "feature 1 × 0"]
    assert states[-1] == "unsteered"
    assert contents(home / "run") == before


def test_a_conversation_ends_with_its_input(melbo):
    ended = melbo("chat", "run", "--feature", 1, "--strength", 2, stdin="")
    assert ended.code == 0
    assert "[feature 1 × 2] you: " in ended.out


def test_ctrl_c_in_a_conversation(melbo, monkeypatch):
    def interrupted(*args, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(chat.Chat, "reply", interrupted)
    ended = melbo("chat", "run", stdin="dog\n")
    assert ended.code == 130
    assert ended.err.endswith("interrupted\n")
