"""Eighty columns: lines break at words, tables keep their columns, and a next command ends it."""

import re
import shlex

import pytest
from command_line import PROMPT, SHORT, joined

from melbo.cli import terminal
from melbo.cli.terminal import broken_at_words, next_step
from melbo.dictionary.saved import save
from melbo.dictionary.top_k import TopK

FILL = "--prompt", "dog " * 18
CONTRAST = ("--plus", "you is red", "--minus", "he was one blue")
COMMANDS = [
    ("fit", "tiny", "--prompt", PROMPT, "--out", "new", "-m", 3, "--scale", 1, "--seeds", 2),
    ("calibrate", "tiny", *FILL),
    ("openings", "tiny", "--num", 3, *FILL, *SHORT),
    ("rank", "run", "--max-new-tokens", 4, "--controls", 2),
    ("sample", "run", *FILL, "--max-new-tokens", 30),
    ("ablate", "run", "--feature", 0, *FILL, "--max-new-tokens", 30),
    ("report", "run"),
    ("contrast", "tiny", "--method", "sara", *CONTRAST, "--out", "new"),
    ("bilinear", "trace", "tiny", "--positive", "you is red", "--negative", "he was one blue"),
    ("dictionary", "inspect", "dictionary"),
]


@pytest.fixture
def dictionary(home):
    if not (home / "dictionary").exists():
        save(TopK(8, 20, 2), home / "dictionary")


@pytest.mark.parametrize("argv", COMMANDS, ids=lambda argv: argv[0])
def test_lines_fit_and_the_last_says_how_to_go_on(melbo, run, dictionary, tmp_path, argv):
    places = {"run": run, "new": tmp_path / "new"}
    ended = melbo(*(places.get(word, word) for word in argv))
    assert ended.code == 0, ended.err
    said = ended.out + (ended.err if argv[0] == "report" else "")
    assert re.fullmatch(r"next: melbo [a-z].*", joined(said).splitlines()[-1])
    for line in said.splitlines():
        # a word that is longer than a line, a path say, cannot be broken
        assert len(line) <= 80 or max(map(len, line.split())) > 60, line


@pytest.mark.parametrize("width", [40, 60, 80])
def test_words_stay_whole_and_what_is_left_out_is_told(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    words = [f"word{i}" for i in range(60)]
    lines = broken_at_words(" ".join(words), 4).splitlines()
    assert max(map(len, lines)) <= width
    assert [word for line in lines for word in line.split()] == words
    assert all(line.startswith("    word") for line in lines[1:])
    few = broken_at_words(" ".join(words), 4, lines=2).splitlines()
    assert len(few) == 2
    assert few[-1].endswith(" …")
    assert set(" ".join(few).split()) <= {*words, "…"}


def test_nothing_that_a_model_says_steers_the_terminal():
    assert broken_at_words("\x1b[2Jgone\x07\nnext\tone") == "\ufffd[2Jgone\ufffd\nnext    one"


def test_a_long_command_is_still_one_for_a_shell(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    words = ["fit", "a model", *["--prompt", "Tell me how to bake a cake"] * 3, "--out", "x"]
    next_step(*words, trust=True)
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 60
    assert re.search(r" \\\n    ", said)
    assert shlex.split(joined(said))[2:] == [*words, "--trust-remote-code"]


def test_a_wide_terminal_is_not_filled_and_none_is_eighty_wide(monkeypatch):
    for told, width in (("500", 120), ("100", 100), ("20", 40)):
        monkeypatch.setenv("COLUMNS", told)
        assert terminal.columns() == width
    monkeypatch.delenv("COLUMNS")
    assert terminal.columns() == 80
