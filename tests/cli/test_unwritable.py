"""Folders that cannot be written: seen before any work, and nothing lost."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from command_line import FIT, PROMPT, SCRIPT, SHORT, contents, environment, one_line

from melbo import MelboError, records
from melbo.cli import options
from melbo.records import refuse_existing, require_writable

SELECT = ("--judge", "complies", "--validation", "good.txt", "--test", "other.txt", *SHORT)


@pytest.fixture
def no_work(monkeypatch):
    """Loading a model, which comes before all work, is an error."""

    def load(*args, **more):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(options, "load_from", load)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("command", "name"),
    [
        *((("rank",), name) for name in ("ranking.json", "completions.jsonl", "report.html")),
        *((("select", *SELECT), name) for name in ("selection.jsonl", "selection.json")),
        (("report",), "report.html"),
    ],
    ids=str,
)
@pytest.mark.parametrize("why", ["a folder is there", "no file can be made", "it is read-only"])
def test_a_run_that_cannot_be_written_is_refused_before_any_work(
    melbo, run, monkeypatch, command, name, why
):
    says = str(run / name)
    if why == "a folder is there":
        (run / name).unlink(missing_ok=True)
        (run / name).mkdir()
    elif why == "no file can be made":
        says = str(run)
        monkeypatch.setattr(records, "TemporaryFile", refuse_to_make)
    else:
        (run / name).touch()
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != name)
    before = contents(run)
    said = one_line(melbo(command[0], run, *command[1:]))
    assert f"{says} cannot be written to" in said
    assert contents(run) == before


def refuse_to_make(dir):
    raise OSError(30, "Read-only file system", str(dir))


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    "command",
    [
        FIT,
        ("contrast", "tiny", "--method", "actadd", "--plus", "a", "--minus", "b", "--out", "new"),
        ("compare", "tiny", "--prompt", PROMPT, "--out", "new"),
        ("ablate", "run", "--out", "new"),
        ("export", "run", "--out", "new"),
        ("export", "run", "--out", "new", "--together"),
    ],
    ids=lambda argv: " ".join((argv[0], *argv[4:])),
)
def test_a_new_folder_that_cannot_be_made_is_refused_before_any_work(refuses, monkeypatch, command):
    monkeypatch.setattr(records, "TemporaryFile", refuse_to_make)
    assert "cannot make the folder new" in refuses(*command)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_somebody_elses_run_is_refused(run, tmp_path):
    """Permissions as the system has them; root, as whom these tests may run, has them all."""
    there = shutil.copytree(run, "/tmp/melbo-somebody-elses-run", dirs_exist_ok=True)
    Path(there).chmod(0o755)
    try:
        code = (
            "import os; from melbo.records import require_writable\n"
            "os.setuid(65534)\n"
            f"try: require_writable({str(there)!r}, ())\n"
            "except Exception as err: print(err)"
        )
        python = SCRIPT.parent / "python"
        done = subprocess.run(
            [python, "-c", code], capture_output=True, text=True, env=environment(), check=True
        )
        assert f"{there} cannot be written to" in done.stdout
    finally:
        shutil.rmtree(there)


def test_looking_leaves_nothing_behind(tmp_path):
    (tmp_path / "a").write_text("kept")
    before = contents(tmp_path)
    require_writable(tmp_path, ("a", "b"))
    refuse_existing(tmp_path / "new", False, ("a",), "a file")
    require_writable(tmp_path / "new", ("a",))
    assert contents(tmp_path) == before


def test_a_folder_in_place_of_a_file_is_not_forced_away(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(MelboError, match="already holds a file"):
        refuse_existing(tmp_path, False, ("a",), "a file")
    with pytest.raises(MelboError, match="a cannot be written to"):
        refuse_existing(tmp_path, True, ("a",), "a file")


def test_a_run_that_can_be_written_is_ranked_again(melbo, run):
    assert melbo("rank", run, *SHORT, "--controls", 1).code == 0
    assert len(json.loads((run / "ranking.json").read_text())["controls"]) == 1
