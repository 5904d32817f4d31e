"""The table of the page, made from rows."""

from research.compatibility.rows import PASS
from research.compatibility.tables import compatibility_table, page_tables

TRAITS = {"cache": True, "resumes": True, "left_padding": True}
MADE_WITH = {"torch": "1", "transformers": "2", "peft": "3"}


def row(model, kind, traits=TRAITS, **checks):
    named = {"cached replies": PASS, "padded batch": PASS, "ablate": PASS}
    named |= {name.replace("_", " "): outcome for name, outcome in checks.items()}
    return {"model": model, "kind": kind, "checks": named, "traits": traits}


def test_models_stand_under_their_kind_and_reasons_are_numbered_once():
    rows = [
        row("a", "plain"),
        row("b", "plain", ablate="refused: it cannot"),
        row("c", "odd", ablate="refused: it cannot", cached_replies="refused: nor this"),
        row("d", "odd", {**TRAITS, "cache": False, "left_padding": False}, ablate="wrong: by 3"),
    ]
    table = compatibility_table(rows, MADE_WITH)
    assert table.splitlines() == [
        "|  | cached replies | padded batch | ablate |",
        "| --- | --- | --- | --- |",
        "| **plain** |  |  |  |",
        "| a | ✓ | ✓ | ✓ |",
        "| b | ✓ | ✓ | refused (1) |",
        "| **odd** |  |  |  |",
        "| c | refused (2) | ✓ | refused (1) |",
        "| d | ✓ (3) | ✓ (4) | **wrong** (5) |",
        "",
        "1. it cannot",
        "2. nor this",
        "3. Replies are right but slow: its cache changes replies in a batch, and is not used.",
        "4. Rows of a batch have equal lengths, as the model reads padding on the left.",
        "5. wrong: by 3",
        "",
        "Measured with torch 1, transformers 2, peft 3.",
    ]


def test_the_committed_table_has_no_wrong_cell():
    table = page_tables()["compatibility"]
    assert "| ✓ |" in table
    assert "wrong" not in table
