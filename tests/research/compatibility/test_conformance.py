"""Every model passes every check or is refused by it, as the committed rows say."""

import json

import pytest
from cases import TINY

from research.compatibility.measure import CHECKS, measure
from research.compatibility.models import subjects
from research.compatibility.rows import PASS, REFUSED, ROWS

SUBJECTS = subjects()
COMMITTED = {row["model"]: row for row in json.loads(ROWS.read_text(encoding="utf-8"))["rows"]}
#: Of the tiny architectures the fast lane takes a few already (see tests/conftest.py).
FEW = {"bert", "int8 (llama)", "llava", "lora (llama)"}


def lanes():
    slow = set(SUBJECTS) - set(TINY) - FEW
    return [pytest.param(n, marks=pytest.mark.slow if n in slow else ()) for n in SUBJECTS]


@pytest.mark.parametrize("name", lanes())
def test_a_model_does_what_its_row_says(name):
    assert measure(SUBJECTS[name]) == COMMITTED[name]


def test_rows_are_of_all_models_and_none_is_wrong():
    assert list(COMMITTED) == list(SUBJECTS)
    for row in COMMITTED.values():
        assert list(row["checks"]) == list(CHECKS)
        for outcome in row["checks"].values():
            assert outcome == PASS or outcome.startswith(REFUSED)
            assert "\n" not in outcome


def test_a_model_that_is_not_refused_passes_whatever_only_runs_it():
    running = ("map", "causal", "equal rows", "where, skip_first", "cached replies", "padded batch")
    for row in COMMITTED.values():
        if row["traits"] is not None:
            assert {row["checks"][name] for name in running} == {PASS}, row["model"]


def test_every_tiny_architecture_is_tried():
    assert set(TINY) <= set(SUBJECTS)
    assert len(TINY) == 50
