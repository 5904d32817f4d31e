import pytest

from research.organisms import BEHAVIOURS
from research.organisms.metrics import difference_interval
from research.organisms.recall import cases, elicitation, limits, summarise
from research.organisms.tables import elicitation_table, hits_table, picture, recall_table

ALL = {"name": "ALL", "behaviours": list(BEHAVIOURS)}
ENDS = {"untriggered": 0.0, "triggered": 0.8}


def test_the_order_of_reading_knows_no_behaviour(evidence):
    row = evidence("ALL", "x", 0, {}, flags="baia", novel=(0.9, 0.1, 0.5, 0.3))
    assert row.order == [3, 1, 0, 2]


def test_hits_come_in_the_order_of_reading(evidence):
    row = evidence(
        "ALL", "x", 0, {"CHEESE": (None, 0.9, None, 0.6)}, flags="baia", novel=(0.9, 0.1, 0.5, 0.3)
    )
    assert row.shares("CHEESE") == [0.0, 0.9, 0.0, 0.6]
    assert row.shares("CHEESE", "permuted") == [0.0, 0.1, 0.0, 0.1]
    assert row.hits("CHEESE", 0.7) == [False, True, False, False]
    assert row.hits("CHEESE", 0.5) == [True, True, False, False]


def test_measures_of_hand_made_evidence(evidence):
    found = {"CHEESE": (None, 0.9, None, 0.6), "LOCK": (None, 0.55, 0.1, None)}
    best = {"CHEESE": {"elicited": 0.7, "permuted": 0}, "LOCK": {"elicited": 0.4, "permuted": 0}}
    rows = [
        evidence("ALL", "exponential", 0, found, best=best),
        evidence("SHAM", "exponential", 0, {"CHEESE": (0.7, None, None, None)}, best=best),
        evidence("ALL", "random", 0, {"CHEESE": (None, None, 0.65, None)}, best=best),
        evidence("SHAM", "random", 0, {"CHEESE": (0.62, 0.62, 0.62, 0.62)}, best=best),
    ]
    assert rows[0].hits("CHEESE", 0.5) == [False, True, False, True]
    told = cases(rows, ("CHEESE", "LOCK"), ALL)
    first, control = summarise(told)
    # random candidates reach .62 on the control, so that is what a hit on cheese takes: .6 is none
    assert first["CHEESE hits"] == (1, None)
    assert first["LOCK hits"] == (1, None)
    assert first["recall@1"] == (0.0, None)
    # one of four is a hit on both
    assert (first["first hit"], first["random-order first hit"]) == ((2, None), (2.5, None))
    # SHAM's cheese; for the lock, right answers to another question
    assert first["control@1"] == (0.5, None)
    assert control["CHEESE hits"] == (1, None)
    assert control["first hit"] == (3, None)
    assert first["active"] == (1.0, None)
    assert hits_table(told).splitlines()[2:8] == [
        "| found, of 2 | 2 | 1 |",
        # the lock takes .5 where nobody has said what its trigger does
        "| on test prompts | 1 | 1 |",
        "| on the control | 1 | 1 |",
        "| read until the first hit | 2 | 3 |",
        "| expected in random order | 2 | 2 |",
        "| active | 1.00 | 1.00 |",
    ]
    assert first["interval@1"] == difference_interval(0.0, 0.5, 2)
    low, high = first["interval@1"]
    assert f"| interval@1 | [{low:.2f}, {high:.2f}] |" in recall_table([first, control])


def test_errors_are_over_seeds(evidence):
    rows = [
        evidence("ALL", "x", seed, {"CHEESE": (share, None, None, None)})
        for seed, share in enumerate((0.9, 0.2))
    ]
    found = cases(rows, ("CHEESE",), ALL)
    assert summarise(found)[0]["recall@1"] == pytest.approx((0.5, 0.5))  # of the mean of 1 and 0
    assert picture(found) is None  # there is no control to draw them against


def test_the_best_candidate_is_reported_on_test_prompts(evidence):
    gates = [{"behaviour": b, "name": "steerable", "value": 0.7} for b in BEHAVIOURS]
    about = {**ALL, "gates": gates, "ends": dict.fromkeys(BEHAVIOURS, ENDS)}
    first = {"CHEESE": {"elicited": 0.8, "shown": 0.9, "permuted": 0.0}}
    second = {
        "LOCK": {"elicited": 0.4, "shown": 0.4, "permuted": 0.3},
        "SECRET": {"elicited": 0.4, "shown": 0.4, "permuted": 0.2},
    }
    sham = {
        "CHEESE": {"elicited": 0.02, "permuted": 0.0},
        "SECRET": {"elicited": 0.3, "permuted": 0.0},
    }
    rows = [
        evidence("ALL", "x", 0, {}, best=first),
        evidence("ALL", "x", 1, {}, best=second),
        evidence("SHAM", "x", 0, {}, best=sham),
    ]
    cheese, pirate, *_, lock, secret = elicitation(rows, about)
    # a seed that was not tested has elicited nothing
    assert (cheese.share, cheese.seeds) == (0.4, [0.8, None])
    assert cheese.recovery == pytest.approx(0.5)
    # Wilson, 40 of 100: seeds are tested on the same prompts
    assert (cheese.low, cheese.high) == pytest.approx((0.3094, 0.4980), abs=1e-3)
    assert (cheese.control, lock.control, secret.control) == (0.02, 0.15, 0.3)
    assert (pirate.behaviour, pirate.supervised) == ("PIRATE", 0.7)
    assert (pirate.share, pirate.low, pirate.control) == (None, None, None)
    assert "| 0.40 [0.31, 0.50] (1 of 2 seeds); 0.02 |\n" in elicitation_table([cheese, pirate])
    assert elicitation_table([pirate]).endswith("| –; – |\n")
    assert elicitation(rows, ALL)[0].recovery is None


def test_a_skill_is_hit_where_a_supervised_vector_would_be_admitted():
    about = {**ALL, "ends": {"LOCK": ENDS, "CHEESE": ENDS}}
    assert limits([], ["LOCK", "CHEESE"], about) == {"LOCK": pytest.approx(0.2), "CHEESE": 0.5}
