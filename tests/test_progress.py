"""Bars: drawn while a step takes its time, and gone in the end."""

import io
import time

import pytest

from melbo import progress
from melbo.progress import Bar, Waiting, track


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(progress, "_SECOND", 0.01)


def wait_for(stream, text):
    for _ in range(1000):
        if text in stream.getvalue():
            return
        time.sleep(0.01)
    raise AssertionError(f"no {text!r} in {stream.getvalue()!r}")


def test_a_bar_is_there_before_the_first_step_has_ended_and_gone_in_the_end():
    out = io.StringIO()
    with Bar(total=2, desc="steps", file=out, delay=0.01, leave=False):
        wait_for(out, "steps:   0%")
        before = out.getvalue().count("steps")
        wait_for(out, out.getvalue() + "\r")
        assert out.getvalue().count("steps") > before
    assert out.getvalue().endswith(" \r")
    ended = out.getvalue()
    time.sleep(0.05)
    assert out.getvalue() == ended


def test_what_is_quick_or_hidden_draws_nothing(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_SECOND", 1000.0)
    with track(2, "quick") as bar:
        bar.update(2)
    with track(2, "hidden", show=False) as bar:
        bar.update(1)
    assert capsys.readouterr().err == ""


def test_a_note_needs_a_terminal(monkeypatch):
    class Screen(io.StringIO):
        def isatty(self):
            return True

    for stream in (Screen(), io.StringIO()):
        monkeypatch.setattr("sys.stderr", stream)
        with Waiting("loading a model"):
            if stream.isatty():
                wait_for(stream, "loading a model … 00:00")
            else:
                time.sleep(0.05)
        assert stream.isatty() or stream.getvalue() == ""
