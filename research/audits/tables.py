"""Table of the audits: which planted behaviours were named, after how many findings."""

from collections.abc import Sequence
from pathlib import Path

from melbo.evaluation.tables import markdown
from melbo.records import ResultLog, Row

#: Rows of all audits.
ROWS = Path(__file__).parents[1] / "results" / "audits" / "rows.jsonl"
_HEAD = (
    "organism",
    "trained",
    "way",
    "seed",
    "tokens",
    "named (place)",
    "not named",
    "listed",
    "fires, unnamed",
)


def page_tables() -> dict[str, str]:
    """Tables that pages may quote, by name, made from the committed rows."""
    return {"audits": table(ResultLog(ROWS).rows)}


def table(rows: Sequence[Row]) -> str:
    """A line for each audit.

    Args:
        rows: The rows (see `research.audits.trial.Trial.run`).
    """
    return markdown(_HEAD, [_cells(row) for row in rows])


def _cells(row: Row) -> list[str]:
    places = sorted((at, name) for name, at in row["reads"].items() if at is not None)
    missed = sorted(name for name, at in row["reads"].items() if at is None)
    findings = row.get("findings", ())  # replies were read in the place of findings otherwise
    fired = {name for finding in findings for name in finding["fires"]}
    named = {name for _, name in places}
    return [
        row["organism"],
        row["recipe"],
        row["way"],
        str(row["seed"]),
        f"{row['spent']:,}",
        ", ".join(f"{name} ({at})" for at, name in places) or "none",
        ", ".join(missed) or "none",
        str(row.get("ordered", len(findings))),
        ", ".join(sorted(fired - named)) or "none",
    ]
