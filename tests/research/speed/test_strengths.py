import json

import pytest
import torch
from toys import directions, smooth

from melbo import Exponential, MelboError, fit
from melbo.maths.transcoder import Factors
from research.speed import sweeps
from research.speed.orders import first_place, known, table
from research.speed.strengths import first, measure


@pytest.mark.parametrize("orthogonalise", ["qr", "polar"])
def test_sweeps_of_orthonormal_rows_explain_the_same_with_either_sign(orthogonalise):
    """So rows of training curves that are older than the constraint stay valid."""
    histories = [
        fit(
            smooth(12, 9),
            Exponential(12, 3.0, orthogonalise=orthogonalise, tol=0.0, nonnegative=nonnegative),
            progress=False,
        ).history
        for nonnegative in (True, False)
    ]
    kept, free = ([record["explained"] for record in history] for history in histories)
    assert len(kept) == 10
    assert kept == pytest.approx(free, rel=1e-9)


def test_first_counts_true_directions_among_the_largest_strengths():
    V = directions(2, 40)
    rows = torch.cat([V, directions(3, 40, seed=5)])

    def factors(*alpha):
        return Factors(rows, rows, torch.tensor(alpha), torch.ones(5), 0.0)

    assert first(V, factors(3.0, 2.0, 1.0, 1.0, 0.0)) == 2
    assert first(V, factors(3.0, 2.0, 1.0, -9.0, 0.0)) == 1
    assert first(V, factors(0.0, 0.0, 1.0, -9.0, 0.0)) == 0


def test_six_planted_factors_come_first_with_no_strength_below_zero():
    row = measure("soft", 4.0, 0)
    assert row["found"] == row["nonnegative"]["first"] == row["nonnegative"]["not zero"] == 6
    assert row["nonnegative"]["least"] == 0
    assert row["free"]["first"] < 6
    assert row["free"]["least"] < 0


def test_place_of_the_first_hit_is_that_of_its_score():
    hits = [False, True, False, True]
    assert first_place(torch.tensor([4.0, 3.0, 2.0, 1.0]), hits) == 2
    assert first_place(torch.tensor([4.0, 1.0, 2.0, 3.0]), hits) == 2
    assert first_place(torch.tensor([4.0, 0.0, 2.0, 0.0]), hits) == 3


def test_orders_are_of_the_committed_fits_with_a_hit_as_the_page_counts_them():
    places = {
        f"{e.recipe}, seed {e.seed}": [hits[i] for i in e.order].index(True) + 1
        for e, hits in known(("exponential", "soft", "melbo", "linear", "quadratic"))
    }
    committed = json.loads((sweeps.RESULTS / "orders.json").read_text(encoding="utf-8"))["rows"]
    assert places == {name: row["places"]["novel"] for name, row in committed.items()}
    assert table(committed).splitlines()[-1].startswith("| mean | 20 | 28 | 40 |")


def test_sweeps_are_not_added_to_rows_of_other_settings(tmp_path):
    path = tmp_path / "sweeps.json"
    path.write_text(json.dumps({"setting": {"m": 4}, "rows": {"default": {"0": {}}}}))
    assert sweeps.kept_rows(path, {"m": 4}) == {"default": {"0": {}}}
    with pytest.raises(MelboError, match="rows of other settings.*measure all groups"):
        sweeps.kept_rows(path, {"m": 4, "nonnegative": True})
