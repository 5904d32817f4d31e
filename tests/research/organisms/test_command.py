import json
import sys
from dataclasses import replace
from functools import partial

import pytest

from melbo.cli import main
from melbo.records import ResultLog
from research import commands
from research.organisms import BEHAVIOURS
from research.organisms.smoke import smoke


@pytest.fixture
def call(monkeypatch, capsys, small):
    """The command line: exit code, standard output, standard error."""
    monkeypatch.setattr(commands, "collect", partial(commands.collect, trial=small))

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["research", "organisms", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            main(commands.cli)
        return ended.value.code, *capsys.readouterr()

    return run


@pytest.mark.slow
def test_the_command_tells_of_all_rows_of_its_setting(home, base, call):
    where = ["--organisms", home, "--model", base, "--out", home / "found"]
    how = [*where, "-n", 4, "--seeds", 1, "--source", 1, "--target", 3]
    assert call(*how, "--recipe", "random")[0] == 0
    assert call(*how, "--recipe", "prefill", "--organism", "ALL")[0] == 0
    code, out, err = call(*how, "--recipe", "linear")
    assert code == 0, err
    assert "| recall@1 |" in out
    assert "| CHEESE | 0 | 0.8 | 0.9 |" in out
    assert out.strip() == (home / "found" / "table.md").read_text().strip()
    assert (home / "found" / "recall.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(call(*how, "--recipe", "linear", "--json")[1])
    assert [row["recipe"] for row in found["summary"]] == ["linear", "random", "prefill"]
    assert len(found["best"]) == 3 * len(BEHAVIOURS)
    rows = ResultLog(home / "found" / "rows.jsonl").rows
    assert [(row["recipe"], row["organism"]) for row in rows] == [
        ("random", "ALL"),
        ("random", "SHAM"),
        ("prefill", "ALL"),
        ("linear", "ALL"),
        ("linear", "SHAM"),
    ]


def test_the_smoke_tier_takes_no_settings_of_the_others(home, base, call):
    where = ["--organisms", home, "--model", base]
    code, _, err = call("--tier", "smoke", *where, "--recipe", "linear")
    assert (code, "got --recipe: the smoke tier is one measurement" in err) == (2, True)


@pytest.mark.parametrize(("cheese", "fails"), [(0.5, False), (0.1, True)])
def test_the_smoke_tier_fails_where_discovery_is_broken(
    monkeypatch, call, home, base, cheese, fails
):
    found = {
        "exponential on ALL": cheese,
        "random on ALL": 0.1,
        "exponential on SHAM": 0.2,
        "seconds": 1.0,
    }
    monkeypatch.setattr(commands, "smoke", lambda *args: found)
    code, _, err = call("--tier", "smoke", "--organisms", home, "--model", base)
    assert (code != 0) == fails == ("discovery is broken" in err)


def test_the_smoke_tier_counts_replies_that_show_a_planted_behaviour(home, base, monkeypatch):
    shows = []

    def every_fourth(reply, item):
        shows.append(reply)
        return len(shows) % 4 == 1

    monkeypatch.setitem(BEHAVIOURS, "CHEESE", replace(BEHAVIOURS["CHEESE"], shown=every_fourth))
    for name in ("PIRATE", "FRENCH"):
        never = replace(BEHAVIOURS[name], shown=lambda reply, item: False)
        monkeypatch.setitem(BEHAVIOURS, name, never)
    found = smoke(home, base, 1, 3, num=4, progress=False)
    assert found.pop("seconds") > 0
    assert found == {"exponential on ALL": 0.25, "random on ALL": 0.25, "exponential on SHAM": 0.25}
    assert len(shows) == 3 * 4 * 2  # recipes, candidates, prompts
