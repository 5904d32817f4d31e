"""Terminals that are not UTF-8, and words that are not text: no traceback, and no work lost."""

import io
import subprocess
import sys

import pytest
from command_line import PROMPT, SCRIPT, SHORT, environment, strict

from melbo import cli
from melbo.cli.terminal import is_broken

pytestmark = pytest.mark.slow

ENCODINGS = ["cp1252", "latin-1", "ascii", "koi8-r", "cp932", "utf-8"]
WORDS = "日本語 é ü 😀 one two"
BROKEN = "caf\udce9"  # bytes of a shell's argument that are not UTF-8, as Python has them


@pytest.fixture
def at(home, monkeypatch):
    """The entry point, with streams of an encoding; its bytes."""

    def call(encoding, *argv, stdin=b""):
        out, err = io.BytesIO(), io.BytesIO()
        with monkeypatch.context() as patch:
            patch.chdir(home)
            patch.setattr(sys, "argv", ["melbo", *map(str, argv)])
            for name, raw in (("stdout", out), ("stderr", err), ("stdin", io.BytesIO(stdin))):
                patch.setattr(sys, name, io.TextIOWrapper(raw, encoding))
            with pytest.raises(SystemExit) as end:
                cli.main()
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            said, failed = out.getvalue(), err.getvalue()
        assert end.value.code == 0, failed
        return said

    return call


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    "argv",
    [
        ("sample", "run", "--prompt", WORDS, "--feature", 0, *SHORT),
        ("calibrate", "tiny", "--prompt", PROMPT),
        ("ablate", "run", "--prompt", WORDS, "--feature", 0, *SHORT),
        ("chat", "run", "--feature", 0, *SHORT),
    ],
    ids=lambda argv: argv[0],
)
def test_every_terminal_takes_every_character(at, argv, encoding):
    said = at(encoding, *argv, stdin=WORDS.encode(encoding, errors="replace") + b"\n/quit\n")
    assert said
    if encoding == "utf-8" and "--prompt" in argv and argv[0] != "calibrate":
        assert WORDS in said.decode()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_table_is_printed_in_every_encoding(at, run, tmp_path, encoding):
    (tmp_path / "held.txt").write_text(WORDS + "\n", encoding="utf-8")
    held = ("--held-out", tmp_path / "held.txt", "--controls", 1)
    said = at(encoding, "rank", run, *SHORT, *held)
    assert b"feature 3" in said
    assert (rb"\u65e5" in said) == (encoding not in ("utf-8", "cp932"))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_json_is_the_same_in_every_encoding(at, encoding):
    argv = ("sample", "run", "--prompt", WORDS, "--feature", 0, *SHORT, "--json")
    said = at(encoding, *argv)
    rows = [strict(line) for line in said.decode(encoding).split("\n") if line]
    assert [row["prompt"] for row in rows] == [WORDS, WORDS]
    assert said.isascii() == (encoding != "utf-8")


def test_the_console_script_ends_well_where_python_has_cp1252(home):
    done = subprocess.run(
        [SCRIPT, "sample", "run", "--prompt", WORDS, "--feature", "0", *SHORT],
        capture_output=True,
        env={**environment(), "PYTHONUTF8": "0", "PYTHONIOENCODING": "cp1252"},
        cwd=home,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert r"\u65e5\u672c\u8a9e é ü \U0001f600 one two".encode("cp1252") in done.stdout


@pytest.mark.parametrize(
    ("argv", "option"),
    [
        (("fit", "tiny", "--prompt", BROKEN, "--out", "new"), "--prompt"),
        (("fit", "tiny", "--prompt", PROMPT, "--system", BROKEN, "--out", "new"), "--system"),
        (("fit", "tiny", "--prompt", PROMPT, "--prefix", BROKEN, "--out", "new"), "--prefix"),
        (("fit", BROKEN, "--prompt", PROMPT, "--out", "new"), "MODEL"),
        (
            ("fit", "tiny", "--prompt", PROMPT, "--template-arg", f"a={BROKEN}", "--out", "new"),
            "--template-arg",
        ),
        (("calibrate", "tiny", "--prompt", "one", "--prompt", BROKEN), "--prompt"),
        (("rank", "run", "--by", "contrast", "--contrast", BROKEN, "no"), "--contrast"),
        (("fit", "tiny", "--prompt", PROMPT, "--out", BROKEN), "--out"),
        (("fit", "tiny", "--prompts", BROKEN, "--out", "new"), "--prompts"),
        (("sample", BROKEN, "--prompt", "dog"), "RUN"),
        (("sample", "run", "--prompt", BROKEN), "--prompt"),
        (("sample", "run", "--prompt", "one", "--model", BROKEN), "--model"),
        (("select", "run", "--judge", f"regex:{BROKEN}"), "--judge"),
        (
            ("contrast", "tiny", "--method", "actadd", "--plus", BROKEN, "--minus", "one"),
            "--plus",
        ),
        (
            ("contrast", "tiny", "--method", "actadd", "--plus", "one", "--minus", BROKEN),
            "--minus",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_broken_bytes_are_refused_by_the_name_of_their_option(refuses, argv, option):
    if argv[0] == "select":
        argv = (*argv, "--validation", "good.txt", "--test", "good.txt")
    if argv[0] == "contrast":
        argv = (*argv, "--out", "new")
    said = refuses(*argv)
    assert option in said
    assert "not valid UTF-8" in said


def test_a_conversation_goes_on_after_broken_bytes(home):
    done = subprocess.run(
        [SCRIPT, "chat", "run", *SHORT],
        input=b"caf\xe9\n/feature \xe9\ndog\n/quit\n",
        capture_output=True,
        env=environment(),
        cwd=home,
        timeout=120,
    )
    assert done.returncode == 0
    assert done.stderr.count(b"error: this turn is not valid UTF-8") == 1
    assert b"/feature needs a number" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("text", ["", "é", "日本語 😀", "\x00\x7f"])
def test_text_is_not_broken(text):
    assert not is_broken(text)


@pytest.mark.parametrize("text", [BROKEN, "\ud83d", "a\udfffb"])
def test_lone_surrogates_are(text):
    assert is_broken(text)
