"""Tables of the published measurements, for the pages."""

import json
from typing import Any

from melbo.evaluation.tables import markdown
from research.speed import orders, strengths, themes
from research.speed.results import RESULTS

# in the published files the plain formulation has the name "reference"
_OLD_NAME, _NAME = "reference", "plain"


def page_tables() -> dict[str, str]:
    """Tables by name."""
    return {
        "speed": speed_table([_read("bench-1-thread"), _read("bench-2-threads")]),
        "themes": themes.table(_read("themes")["rows"]),
        "strengths": strengths.table(_read("strengths")["rows"]),
        "orders": orders.table(_read("orders")["rows"]),
    }


def speed_table(results: list[dict[str, Any]]) -> str:
    """Results of ``python -m research speed --out`` in Markdown, a line for each measurement.

    Args:
        results: The results.
    """
    lines = []
    for result in results:
        for threads, rows in result["threads"].items():
            for row in rows:
                share = f"{row['of_products']:.0%}" if row["of_products"] else "–"
                others = [f"{k} × {ratio:.3g}" for k, ratio in (row["versus"] or {}).items()]
                versus = "; ".join(others).replace(_OLD_NAME, _NAME) or "–"
                seconds = f"{row['median_seconds']:.3g}"
                lines.append([row["what"], str(threads), seconds, share, versus])
    head = ["", "threads", "seconds", "of products", "what else takes, in times ours"]
    return markdown(head, lines)


def _read(name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return result
