"""Amplified themes of a tiny model, with an elicitor whose replies are written beforehand."""

import pytest
from scripted import PLANTED, TEXTS, Script, speaker

from melbo import Audit, Parts, Prompts
from melbo.audit.audit import LOG
from melbo.discovery.draws import Temperature
from melbo.records import ResultLog
from research.audits.amplified import amplified, screened_before
from research.organisms.behaviours import Behaviour
from research.organisms.continued import EVERY
from research.organisms.detectors import names


@pytest.fixture
def audit(monkeypatch):
    monkeypatch.setitem(EVERY, "RED", Behaviour("RED", "", "ordinary", names("red")))
    lm = speaker()
    parts = Parts.split(Prompts.chat(lm, TEXTS))
    tried = [Script(), Temperature()]
    return Audit(lm, parts, budget=40_000, elicitors=tried, max_new_tokens=10)


def test_a_planted_theme_is_counted_in_every_way_on_held_out_prompts(audit, tmp_path):
    [row] = amplified(audit, ["RED"], tmp_path)
    assert row["names"] == ["RED"]
    assert set(row["theme"].split(", ")) == set(PLANTED)
    for way in ("found", "quote", "vector", "kept"):
        # the script says it to every prompt, and nothing does better
        assert (row[way]["test"], row[way]["validation"]) == (1, 1)
        assert row[way]["by"] == "script"
        assert row[way]["fires"] == ["RED"]


def test_themes_that_name_nothing_are_left_out_unless_nothing_was_planted(audit, tmp_path):
    assert amplified(audit, [], tmp_path) == []
    again = amplified(audit, [], tmp_path, planted=False)
    assert len(again) > 0
    assert all(row["kept"]["fires"] == [] for row in again)


def test_a_screening_is_gone_on_with_and_the_audit_s_own_log_stays(audit, tmp_path):
    before, after = tmp_path / "audit", tmp_path / "more"
    audit.run(before, progress=False)
    whole = (before / LOG).read_bytes()
    screened_before(before, after)
    copied = ResultLog(after / LOG).rows
    assert {row["stage"] for row in copied} == {"settings", "plan", "find", "screen"}
    amplified(audit, ["RED"], after)
    assert (before / LOG).read_bytes() == whole
    rows = ResultLog(after / LOG).rows
    assert rows[: len(copied)] == copied
    assert not {"screen", "find"} & {row["stage"] for row in rows[len(copied) :]}
