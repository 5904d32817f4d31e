"""Text that ships with Python, activations with a known truth, and the tables of both."""

import pytest
import torch

from research.dictionaries import shrinkage
from research.dictionaries.shrinkage import L0, SEEDS, WEIGHTS, Case, Truth, at_same_l0
from research.dictionaries.text import docstrings, split


def test_docstrings_of_a_module_are_its_text(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        '"""One."""\nclass A:\n    """Two."""\n    def f(self):\n        "Three."\nx = 1\n'
    )
    assert sorted(docstrings(path).split("\n\n")) == ["One.", "Three.", "Two."]
    path.write_text("def :")
    assert docstrings(path) == ""


def test_whole_documents_are_held_out_by_their_names():
    found = {f"document {i}": f"text {i}" for i in range(500)}
    train, held = split(found)
    assert set(train) | set(held) == set(found.values())
    assert not set(train) & set(held)
    assert 25 <= len(held) <= 80
    assert split(dict(reversed(found.items())))[1] == held[::-1]


def test_activations_are_sums_of_the_known_directions():
    truth = Truth(noise=0.0)
    x = next(truth.batches(4000))[:, 0]
    strengths = torch.linalg.lstsq(truth.rows.T, x.T).solution
    torch.testing.assert_close(truth.rows.T @ strengths, x.T, atol=1e-4, rtol=1e-4)
    again, other = (next(truth.batches(4000, stream))[:, 0] for stream in (0, 1))
    assert again.equal(x)
    assert not other.equal(x)
    # a single one: 3 of 64 are active, with strength 1 in the mean
    power = x.square().sum(1).mean().item()
    assert power == pytest.approx(64 * truth.active * (1 + 1 / 12), rel=0.2)


def row(kind, seed, l0, value):
    return {"kind": kind, "seed": seed, "l0": l0, "gamma": value}


def test_kinds_are_compared_at_one_l0():
    rows = [
        row(kind, seed, l0, value + seed)
        for kind in WEIGHTS
        for seed in SEEDS
        for l0, value in ((L0 / 2, 0.0), (L0 * 2, 1.0))
    ]
    assert at_same_l0(rows, "gated", "gamma") == pytest.approx([0.5 + seed for seed in SEEDS])
    # beyond all rows it is that of the last
    rows = [row("relu", seed, 2 * L0, 3.0) for seed in SEEDS]
    assert at_same_l0(rows, "relu", "gamma") == [3.0] * 5


def test_a_case_is_measured_and_named_by_its_settings():
    case = Case("gated", 2.0, 0, steps=3, batch=50)
    found = case.measure()
    assert case.describe().items() <= found.items()
    assert found["version"] == shrinkage.VERSION
    assert 0 < found["recovered"] < 1
