"""Table of the audits: which planted behaviours were named, after how many findings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from melbo.evaluation.tables import markdown
from melbo.records import ResultLog, Row

#: Rows of all audits.
ROWS = Path(__file__).parents[1] / "results" / "audits" / "rows.jsonl"
#: Rows of how often their themes can be brought out.
AMPLIFIED = ROWS.with_name("amplified.jsonl")
_AMPLIFIED_HEAD = (
    "organism",
    "trained",
    "way",
    "seed",
    "theme",
    "names",
    "found",
    "quote",
    "vector",
    "kept",
    "fires",
)
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
    return {
        "audits": table(ResultLog(ROWS).rows),
        "amplified": amplified_table(ResultLog(AMPLIFIED).rows),
    }


def table(rows: Sequence[Row]) -> str:
    """A line for each audit.

    Args:
        rows: The rows (see `research.audits.trial.Trial.run`).
    """
    return markdown(_HEAD, [_cells(row) for row in rows])


def amplified_table(rows: Sequence[Row]) -> str:
    """A line for each theme: its share of held-out prompts, that of validation prompts beside it.

    Args:
        rows: The rows (see `research.audits.trial.Trial.amplify`).
    """
    return markdown(_AMPLIFIED_HEAD, [_theme(row, t) for row in rows for t in row["themes"]])


def _theme(row: Row, theme: Mapping[str, Any]) -> list[str]:
    ways = [theme[way] for way in ("found", "quote", "vector", "kept")]
    fired = sorted({name for way in ways for name in way["fires"]})
    return [
        *(str(row[key]) for key in ("organism", "recipe", "way", "seed")),
        theme["theme"],
        ", ".join(theme["names"]) or "none",
        *(f"{way['test']:.2f} ({way['validation']:.2f})" for way in ways),
        ", ".join(fired) or "none",
    ]


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
