import json

import pytest
import torch
from command_line import strict

from research.commands import cli


def compared(result):
    return {name for row in result["threads"]["1"] for name in row["versus"] or {}}


@pytest.mark.slow
def test_speed_prints_a_line_for_each_thing_and_keeps_it_all(melbo, tmp_path):
    out = tmp_path / "speed.json"
    small = ("speed", "tiny", "-m", 3, "--repeats", 1, "--threads", 1)
    ended = melbo(*small, "--out", out, group=cli)
    assert ended.code == 0
    kept = json.loads(out.read_text())
    rows = kept["threads"]["1"]
    assert len(rows) == len(ended.out.splitlines()) >= 7
    assert all(row["median_seconds"] > 0 for row in rows)
    assert kept["environment"]["torch"] == torch.__version__
    assert "plain" in compared(kept)
    without = strict(melbo(*small, "--no-plain", "--json", group=cli).out)
    assert not any(name.startswith("plain") for name in compared(without))
