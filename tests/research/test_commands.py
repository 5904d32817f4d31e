import json

import pytest
from click.testing import CliRunner

from research.commands import cli
from research.experiments import EXPERIMENTS
from research.experiments.base import settings_file


@pytest.fixture
def call(tmp_path, monkeypatch):
    """The commands in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *argv: CliRunner().invoke(cli, [*map(str, argv)])


@pytest.mark.parametrize("preset", ["laptop", "paper"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_dry_run_says_what_is_left_to_measure(name, preset, call, tmp_path):
    new = tmp_path / "new"
    ended = call("experiment", name, "--preset", preset, "--out", new, "--dry-run")
    number = len(EXPERIMENTS[name].read(settings_file(name), preset).cases)
    assert (ended.exit_code, f"{number} of {number} cases to go" in ended.output) == (0, True)
    assert not new.exists()


def test_a_published_experiment_has_nothing_left_to_measure(call):
    ended = call("experiment", "depth", "--dry-run")
    assert ended.output.startswith("Where should one push? 0 of 36 cases to go in ")
    settings = json.loads(call("experiment", "depth", "--dry-run", "--json").output)
    assert settings["prompts"] == "questions.txt"
    assert settings["dtype"] == "auto"


def test_settings_of_ones_own_are_read(call, tmp_path):
    text = settings_file("depth").read_text().replace("shuffles = 3", "shuffles = 1")
    (tmp_path / "own.toml").write_text(text)
    ended = call("experiment", "depth", "--config", "own.toml", "--out", "new", "--dry-run")
    assert "12 of 12 cases to go" in ended.output


def test_stale_pages_are_named_and_written(call, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- table: depth -->\n<!-- end -->\n")
    ended = call("pages", "--docs", tmp_path, "--check")
    assert (ended.exit_code, ended.output) == (1, f"stale: {page}\n")
    ended = call("pages", "--docs", tmp_path)
    assert (ended.exit_code, ended.output) == (0, f"written: {page}\n")
    assert "| source | R / ‖h‖ |" in page.read_text()
    ended = call("pages", "--docs", tmp_path, "--check")
    assert (ended.exit_code, ended.output) == (0, "")
