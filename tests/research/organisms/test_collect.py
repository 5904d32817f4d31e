import json
from functools import partial
from itertools import islice

import pytest

from melbo import MelboError
from melbo.records import ResultLog
from research.organisms import BEHAVIOURS, adapter_digest
from research.organisms.collect import Job, collect
from research.organisms.discover import BENCHMARK


@pytest.fixture
def gather(small):
    """Collects in trials that are small."""
    return partial(collect, progress=False, trial=small)


@pytest.mark.slow
def test_a_killed_collection_goes_on_and_no_row_is_written_twice(home, base, gather):
    job = Job(home, base, ("ALL", "SHAM"), ("linear", "random"), 4, 2, 1, 3)
    places = [(case["seed"], case["recipe"], case["organism"]) for case in job.cases]
    assert places == [
        (0, "linear", "ALL"),
        (0, "linear", "SHAM"),
        (0, "random", "ALL"),
        (0, "random", "SHAM"),
        (1, "random", "ALL"),
        (1, "random", "SHAM"),
    ]
    path = home / "rows.jsonl"
    first = list(islice(gather(job, ResultLog(path)), 2))
    rest = list(gather(job, ResultLog(path)))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [e.describe() for e in first + rest]
    assert [(row["seed"], row["recipe"], row["organism"]) for row in rows] == places
    assert list(gather(job, ResultLog(path))) == []
    for row in rows:
        looked_for = {
            b.name for b in BEHAVIOURS.values() if row["organism"] == "ALL" or not b.skill
        }
        assert set(row["shown"]) == set(row["validation"]) == set(row["best"]) == looked_for
        assert row["adapter"] == adapter_digest(home / row["organism"])
        assert row["benchmark"] == BENCHMARK


def test_rows_of_another_adapter_are_not_taken_for_these(home, base, gather):
    job, rows = Job(home, base, ("ALL",), ("random",), 2, 1, 1, 3), ResultLog(None)
    list(gather(job, rows))
    assert rows.missing(job.cases) == []
    (home / "ALL" / "adapter_model.safetensors").write_bytes(
        (home / "SHAM" / "adapter_model.safetensors").read_bytes()
    )
    assert rows.missing(job.cases) == job.cases


def test_the_control_is_judged_as_the_organism_it_is_the_control_of(home, base, small):
    seen = []

    def trial(lm, base, judge, *args, **kwargs):
        seen.append((lm.name, judge.name))
        return small(lm, base, judge, *args, **kwargs)

    job, rows = Job(home, base, ("ALL", "SHAM"), ("random",), 2, 1, 1, 3), ResultLog(None)
    list(collect(job, rows, progress=False, trial=trial))
    assert [tuple(name.rsplit("+")[-1].split("-")[0] for name in names) for names in seen] == [
        ("ALL", "ALL"),
        ("SHAM", "ALL"),
    ]
    assert [row["judge"] for row in rows.rows] == [adapter_digest(home / "ALL")] * 2
    (home / "ALL" / "adapter_model.safetensors").write_bytes(
        (home / "CHEESE" / "adapter_model.safetensors").read_bytes()
    )
    assert rows.missing(job.cases) == job.cases  # SHAM is judged anew too


def test_impossible_numbers_are_refused_before_anything_runs(home, base):
    with pytest.raises(MelboError, match="expected an even number, got 3"):
        Job(home, base, ("ALL",), ("random", "quadratic"), 3, 1, 1, 3)
    assert len(Job(home, base, ("ALL", "ALL"), ("random", "random"), 2, 1, 1, 3).cases) == 1


@pytest.mark.parametrize(
    ("key", "other"),
    [("method", {"name": "Linear", "num_factors": 1, "tol": 1}), ("benchmark", BENCHMARK + 1)],
)
def test_rows_of_other_settings_or_of_another_benchmark_are_others(home, base, gather, key, other):
    job, rows = Job(home, base, ("ALL",), ("linear",), 2, 1, 1, 3), ResultLog(None)
    evidence = list(gather(job, rows))
    assert job.known(rows) == evidence
    assert rows.rows[0]["method"] == {"name": "Linear", "num_factors": 1}
    rows.rows[0][key] = other
    assert job.known(rows) == []
    assert rows.missing(job.cases) == job.cases
