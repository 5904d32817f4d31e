import json

import pytest

from melbo import MelboError
from melbo.records import ResultLog


def test_rows_are_kept_as_they_come_and_none_is_missing_twice(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    rows = ResultLog(path)
    assert not path.exists()
    cases = [{"recipe": "a", "seed": 0}, {"recipe": "a", "seed": 1}]
    assert rows.missing(cases) == cases
    rows.add({**cases[0], "found": [1, 2]})
    assert rows.missing(cases) == ResultLog(path).missing(cases) == cases[1:]
    assert ResultLog(path).of({"recipe": "a"}) == [{"recipe": "a", "seed": 0, "found": [1, 2]}]


def test_a_line_that_was_cut_is_dropped_and_written_over(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"i": 0}) + "\n" + json.dumps({"i": 1})[:-2])
    rows = ResultLog(path)
    assert rows.rows == [{"i": 0}]
    rows.add({"i": 1})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"i": 0}, {"i": 1}]


def test_another_file_is_left_alone(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("no rows\n{}\n")
    with pytest.raises(MelboError, match="line 1 of"):
        ResultLog(path)
    assert path.read_text() == "no rows\n{}\n"
    path.write_text("[1]\n")
    with pytest.raises(MelboError, match="is no row"):
        ResultLog(path)


def test_reading_writes_nothing(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"i": 0}\n{"i": 1}')  # perhaps another process is just writing the second
    assert ResultLog(path).rows == [{"i": 0}]
    assert path.read_text() == '{"i": 0}\n{"i": 1}'


def test_rows_without_a_file_are_kept_in_memory():
    rows = ResultLog(None)
    rows.add({"i": 0})
    assert rows.of({}) == [{"i": 0}]


def test_two_processes_do_not_write_over_each_other(tmp_path):
    path = tmp_path / "rows.jsonl"
    one, other = ResultLog(path), ResultLog(path)
    one.add({"a": 1})
    with pytest.raises(MelboError, match="another process writes to it"):
        other.add({"a": 2})
    one.add({"a": 3})
    assert [row["a"] for row in ResultLog(path).rows] == [1, 3]
