"""`melbo rank`: verdicts, another order without the model, and what Ctrl-C leaves."""

import json
import re

import pytest
from command_line import SHORT, joined

from melbo.cli import use
from melbo.evaluation import kept_replies
from melbo.evaluation.verdict import verdicts

BEFORE = ("--max-new-tokens", 4, "--controls", 2)  # as the run in `home` was ranked


@pytest.fixture
def no_model(monkeypatch):
    def fail(*args):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(use, "load_for", fail)


@pytest.mark.parametrize("more", [(), BEFORE])
def test_another_order_needs_no_model(melbo, run, no_model, more):
    ended = melbo("rank", run, "--by", "kl", *more)
    assert ended.code == 0, ended.err
    assert "--force generates them anew" in ended.err
    kept = json.loads((run / "ranking.json").read_text())
    assert kept["by"] == "kl"
    order = [row["index"] for row in kept["features"]]
    assert [int(i) for i in re.findall(r"^feature (\d)", ended.out, re.MULTILINE)] == order
    assert joined(ended.out).endswith(f"\nnext: melbo chat {run} --feature {order[0]}\n")
    assert "KL(steered" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    "more", [("--force",), ("--controls", 1), ("--seed", 1), ("--contrast", "yes", "no")], ids=str
)
def test_what_was_not_saved_is_generated(melbo, run, more):
    ended = melbo("rank", run, *SHORT, *(() if "--controls" in more else BEFORE[2:]), *more)
    assert ended.code == 0, ended.err
    assert "--force" not in ended.err


def test_verdicts_are_side_by_side_and_rows_in_one_order_by_one_flag(melbo, run):
    how = ("--by", "contrast", "--contrast", "yes", "no", *SHORT, "--controls", 3)
    out = melbo("rank", run, *how).out
    kept = json.loads((run / "ranking.json").read_text())
    flags = [row["validation"]["flag"] for row in kept["features"]]
    assert re.findall(r"^feature \d +(\w+)", out, re.MULTILINE) == flags
    assert flags == sorted(flags, key=lambda flag: flag != "active")
    own = kept["unsteered"]["held_out"]["contrast"]
    assert re.search(rf"^unsteered .* {re.escape(f'{own:.3g}')}$", out, re.MULTILINE)
    found = verdicts(kept)
    if found[0].best_control is None:
        assert "no random vector is active" in out
    else:
        for each in found:
            told = f"{each.above} of {each.active} +[0-9.]+ +{each.broken_above} of {each.broken}"
            assert re.search(rf"^{each.name} +{told}", out, re.MULTILINE)


def test_ctrl_c_says_what_is_kept_and_the_same_command_goes_on(melbo, run, monkeypatch):
    (run / "ranking.json").unlink()
    generate, calls = kept_replies.generate, []

    def press(*args, **more):
        calls.append(args[1].texts)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(*args, **more)

    monkeypatch.setattr(kept_replies, "generate", press)
    command = ("rank", run, *BEFORE, "--batch-size", 7)
    ended = melbo(*command)
    assert (ended.code, ended.out) == (130, "")
    assert "7 replies are kept: the same command goes on with the rest" in ended.err
    assert melbo(*command).code == 0
    assert calls.count(calls[0]) == 1
    assert len(json.loads((run / "ranking.json").read_text())["features"]) == 4
