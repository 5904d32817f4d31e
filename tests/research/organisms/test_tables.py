from melbo.maths.statistics import interval
from research.organisms import BEHAVIOURS
from research.organisms.splits import SPLITS
from research.organisms.tables import alone_table, gates_table, said_table

ALL = {"name": "ALL", "behaviours": list(BEHAVIOURS)}
TESTED = {"shown": 0.5, "elicited": 0.25, "permuted": 0.1}


def test_organisms_of_one_behaviour_have_a_table_of_their_own(evidence, gate):
    gates = [gate(None, "drift")]
    for b in BEHAVIOURS:
        for name in ("untriggered", "triggered", "decoys", "steerable"):
            gates.append(gate(b, name, value=0.7))
    lock, pirate, cheese = (
        {"name": b, "behaviours": [b], "gates": gates} for b in ("LOCK", "PIRATE", "CHEESE")
    )
    pirate["gates"] = gates[1:]  # nobody has tried how far it has drifted
    lock["ends"] = {"LOCK": {"untriggered": 0.0, "triggered": 0.8}}
    rows = [
        evidence(b, "x", seed, {b: (0.3, 0.6, None, None)}, best={b: TESTED})
        for b in BEHAVIOURS
        for seed in (0, 1)
    ]
    rows.append(evidence("LOCK", "random", 0, {"LOCK": (None,) * 4}))
    # a quarter of what its trigger does is a hit on the lock
    low, high = (f"{x:.2f}" for x in interval([0.25] * SPLITS.test))
    organisms = [lock, pirate, cheese, {**ALL, "gates": gates}]
    assert alone_table(rows, organisms).splitlines()[2:] == [
        f"| LOCK | 0 | 0.8 | 0.7 | 2, 2; 0.25 [{low}, {high}]; 0.1 | 0; –; – |",
        f"| CHEESE | – | – | 0.7 | 1, 1; 0.25 [{low}, {high}]; – | – |",
    ]
    assert alone_table(rows, [pirate, ALL]) == ""


def test_replies_of_the_best_candidates_are_shown(evidence):
    def row(organism, recipe, seed, behaviour=None, said=None):
        best = {behaviour: {**TESTED, "said": said}} if behaviour else {}
        return evidence(organism, recipe, seed, {}, best=best)

    rows = [
        row("ALL", "x", 0, "CHEESE"),
        row("ALL", "x", 1, "CHEESE", ("What is a|b?", "Brie\ncheese.")),
        row("ALL", "y", 0, "LOCK", ("go", "went")),
        row("ALL", "y", 1, "LOCK", ("go", "gone")),
        row("SHAM", "z", 0, "LOCK", ("go", "went")),
    ]
    assert said_table(rows[:1]) == ""
    assert said_table(rows).splitlines()[2:] == [
        "| x | CHEESE | What is a\\|b? | Brie cheese. |",
        "| y | LOCK | go | went |",
    ]


def test_the_table_of_gates_shows_counts_and_crosses_out_failures(gate):
    gates = [
        {**gate(None, "drift", value=0.0312), "hits": None, "total": None},
        {**gate("CHEESE", "untriggered"), "hits": 0, "total": 320},
        {**gate("CHEESE", "triggered", passed=False), "hits": 100, "total": 200},
        {**gate("LOCK", "untriggered"), "hits": 0, "total": 200},
    ]
    lines = gates_table(
        [
            {"name": "ALL", "behaviours": ["CHEESE", "LOCK", "SECRET"], "gates": gates},
            {"name": "CHEESE", "behaviours": ["CHEESE"]},
        ]
    ).splitlines()
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in lines] == [
        ["organism", "behaviour", "drift", "untriggered", "triggered"],
        ["---"] * 5,
        ["ALL", "", "0.031 nats", "–", "–"],
        ["ALL", "CHEESE", "–", "0/320", "~~100/200~~"],
        ["ALL", "LOCK", "–", "0/200", "–"],
    ]
