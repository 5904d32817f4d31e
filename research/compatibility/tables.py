"""The table of docs/compatibility.md: models × checks, with the reasons of refusals below it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from melbo.evaluation.tables import markdown
from research.compatibility.rows import PASS, REFUSED, ROWS

_YES, _NO, _NEVER = "✓", "refused", "**wrong**"
_WITHOUT_CACHE = (
    "Replies are right but slow: its cache changes replies in a batch, and is not used."
)
_EQUAL_LENGTHS = "Rows of a batch have equal lengths, as the model reads padding on the left."


def page_tables() -> dict[str, str]:
    """Tables by name."""
    result = json.loads(ROWS.read_text(encoding="utf-8"))
    return {"compatibility": compatibility_table(result["rows"], result["environment"])}


def compatibility_table(rows: Sequence[Mapping[str, Any]], made_with: Mapping[str, Any]) -> str:
    """Rows in Markdown, with a numbered note for each reason.

    Args:
        rows: Rows of `research.compatibility.measure.measure`.
        made_with: Versions that they were measured with.
    """
    checks, notes = [*rows[0]["checks"]], list[str]()
    lines, kind = [], None
    for row in rows:
        if row["kind"] != kind:
            kind = row["kind"]
            lines.append([f"**{kind}**", *[""] * len(checks)])
        cells = [_cell(row["checks"][name], _remark(row, name), notes) for name in checks]
        lines.append([row["model"], *cells])
    numbered = [f"{i}. {note}" for i, note in enumerate(notes, 1)]
    versions = ", ".join(f"{name} {made_with[name]}" for name in ("torch", "transformers", "peft"))
    table = markdown(["", *checks], lines)
    return "\n".join([table, *numbered, "", f"Measured with {versions}."])


def _cell(outcome: str, remark: str | None, notes: list[str]) -> str:
    """A cell, whose note is added to the notes where it is new."""
    if outcome == PASS:
        text, note = _YES, remark
    elif outcome.startswith(REFUSED):
        text, note = _NO, outcome.removeprefix(REFUSED)
    else:
        text, note = _NEVER, outcome
    if note is None:
        return text
    if note not in notes:
        notes.append(note)
    return f"{text} ({notes.index(note) + 1})"


def _remark(row: Mapping[str, Any], name: str) -> str | None:
    """Remark on a check that is passed in a slower way."""
    traits = row["traits"] or {}
    if name == "cached replies" and not traits.get("cache", True):
        return _WITHOUT_CACHE
    if name == "padded batch" and not traits.get("left_padding", True):
        return _EQUAL_LENGTHS
    return None
