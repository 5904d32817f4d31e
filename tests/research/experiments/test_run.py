import json
from dataclasses import replace

import pytest

from melbo import MelboError
from melbo.records import ResultLog
from research.experiments import run


def test_every_case_has_one_row_and_a_killed_run_goes_on(small, tmp_path):
    some = run(small, tmp_path / "out", progress=False)
    first = [next(some) for _ in range(3)]
    some.close()  # as if it had been killed
    rest = list(run(small, tmp_path / "out", progress=False))
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    assert rows == first + rest
    assert [{k: row[k] for k in small.cases[0]} for row in rows] == small.cases
    assert list(run(small, tmp_path / "out", progress=False)) == []
    assert (tmp_path / "out" / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "table.md").read_text() == small.table(rows)


def test_rows_of_other_settings_or_prompts_are_not_taken_for_these(small, tmp_path):
    next(run(small, tmp_path / "out", progress=False))
    rows = ResultLog(tmp_path / "out" / "rows.jsonl")
    assert len(rows.missing(small.cases)) == len(small.cases) - 1
    for other in (
        replace(small, contrast=("no", "yes")),
        replace(small, test=5),
        replace(small, dtype="float64"),
    ):
        assert rows.missing(other.cases) == other.cases
    # what is varied is not a setting
    assert len(rows.missing(replace(small, recipes=("linear", "exponential")).cases)) == 7
    with (tmp_path / "prompts.txt").open("a") as file:
        file.write("\none more")
    assert rows.missing(small.cases) == small.cases


def test_too_few_prompts_are_refused(small):
    with pytest.raises(MelboError, match="expected 61"):
        replace(small, numbers=(50,)).prepare()
