import json

import pytest

from melbo import MelboError
from melbo.rows import Rows


def test_rows_are_kept_as_they_come_and_none_is_missing_twice(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    rows = Rows(path)
    assert not path.exists()
    cases = [{"way": "a", "seed": 0}, {"way": "a", "seed": 1}]
    assert rows.missing(cases) == cases
    rows.add({**cases[0], "found": [1, 2]})
    assert rows.missing(cases) == Rows(path).missing(cases) == cases[1:]
    assert Rows(path).of({"way": "a"}) == [{"way": "a", "seed": 0, "found": [1, 2]}]


def test_a_line_that_was_cut_is_dropped_and_written_over(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"i": 0}) + "\n" + json.dumps({"i": 1})[:-2])
    rows = Rows(path)
    assert rows.every == [{"i": 0}]
    rows.add({"i": 1})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"i": 0}, {"i": 1}]


def test_another_file_is_left_alone(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("no rows\n{}\n")
    with pytest.raises(MelboError, match="line 1 of"):
        Rows(path)
    assert path.read_text() == "no rows\n{}\n"
    path.write_text("[1]\n")
    with pytest.raises(MelboError, match="is no row"):
        Rows(path)


def test_reading_writes_nothing(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"i": 0}\n{"i": 1}')  # perhaps another process is just writing the second
    assert Rows(path).every == [{"i": 0}]
    assert path.read_text() == '{"i": 0}\n{"i": 1}'


def test_rows_without_a_file_are_kept_in_memory():
    rows = Rows(None)
    rows.add({"i": 0})
    assert rows.of({}) == [{"i": 0}]


def test_two_processes_do_not_write_over_each_other(tmp_path):
    path = tmp_path / "rows.jsonl"
    one, other = Rows(path), Rows(path)
    one.add({"a": 1})
    with pytest.raises(MelboError, match="another process writes to it"):
        other.add({"a": 2})
    one.add({"a": 3})
    assert [row["a"] for row in Rows(path).every] == [1, 3]
