"""Pages of results: tables between markers are generated from the committed rows.

``<!-- table: NAME -->`` and ``<!-- end -->``, each on a line of its own, enclose a table.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from melbo.errors import MelboError
from melbo.evaluation.tables import markdown, plus_minus
from melbo.records import ResultLog, write_atomically
from research.audits.tables import page_tables as audit_tables
from research.compatibility.tables import page_tables as compatibility_tables
from research.dictionaries.tables import page_tables as dictionary_tables
from research.experiments import EXPERIMENTS
from research.experiments.base import RESULTS, own_rows, settings_file
from research.organisms.tables import page_tables as organism_tables
from research.speed.tables import page_tables as speed_tables

#: Folder of the pages.
DOCS = Path(__file__).parents[1] / "docs"
_MARKER = re.compile(r"<!-- (?:table: (?P<name>\S+)|(?P<end>end)) -->")
_MEASURES = {
    "effect": "‖Δ‖",
    "novelty": "novelty",
    "kl": "KL",
    "broken": "broken",
    "distinct": "distinct replies",
    "passes": "passes",
}


def page_tables() -> dict[str, str]:
    """Tables that pages may quote, by name, made from the committed rows."""
    experiments = {name: experiment_table(name) for name in EXPERIMENTS}
    return {
        **experiments,
        "compare": compare_table(),
        **speed_tables(),
        **organism_tables(),
        **compatibility_tables(),
        **audit_tables(),
        **dictionary_tables(),
    }


def experiment_table(name: str) -> str:
    """Table of a published experiment."""
    experiment = EXPERIMENTS[name].read(settings_file(name), "laptop")
    rows = ResultLog(RESULTS / name / "rows.jsonl")
    return experiment.table(own_rows(experiment, rows))


def compare_table() -> str:
    """Table of the published comparison of recipes at R, pushed in their own direction."""
    text = (RESULTS / "compare" / "compare.json").read_text(encoding="utf-8")
    comparison = json.loads(text)
    descriptions = comparison["settings"]["recipes"]
    lines = [
        [descriptions[row["recipe"]], *(plus_minus(row[measure]) for measure in _MEASURES)]
        for row in comparison["summary"]
        if (row["times"], row["sign"]) == (1, 1)
    ]
    return markdown(["", *_MEASURES.values()], lines)


def fill(text: str, tables: Mapping[str, str]) -> str:
    """Text of a page with every table between its markers replaced.

    Args:
        text: The page.
        tables: Tables by name.

    Raises:
        MelboError: A table is unknown, or a marker has no counterpart.
    """
    parts: list[str] = []
    open_name, done = "", 0
    for marker in _MARKER.finditer(text):
        line, name = text.count("\n", 0, marker.start()) + 1, marker["name"]
        if name and open_name:
            raise MelboError(
                f"line {line}: the table {open_name} before has no <!-- end -->: add it"
            )
        if marker["end"] and not open_name:
            raise MelboError(f"line {line}: <!-- end --> without a table before it: remove it")
        if name and name not in tables:
            known = ", ".join(sorted(tables))
            raise MelboError(f"line {line}: no table {name}: expected one of {known}")
        if name:
            parts.append(text[done : marker.end()])
        else:
            parts.append(f"\n\n{tables[open_name].strip()}\n\n{marker.group()}")
        open_name, done = name or "", marker.end()
    if open_name:
        raise MelboError(f"the table {open_name} has no <!-- end -->: add it")
    return "".join([*parts, text[done:]])


def stale_pages(folder: Path, tables: Mapping[str, str]) -> dict[Path, str]:
    """Pages whose tables are not what the rows say, each with the text that it should have.

    Args:
        folder: Folder of the pages; those in folders below count too.
        tables: Tables by name.

    Raises:
        MelboError: A page has a marker that cannot be (see `fill`).
    """
    stale = {}
    for page in sorted(folder.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        try:
            filled = fill(text, tables)
        except MelboError as err:
            raise MelboError(f"{page}, {err}") from err
        if filled != text:
            stale[page] = filled
    return stale


def write_pages(folder: Path, tables: Mapping[str, str]) -> list[Path]:
    """Write the pages anew whose tables are not what the rows say.

    Args:
        folder: Folder of the pages.
        tables: Tables by name.

    Returns:
        Paths of the pages that were written.
    """
    stale = stale_pages(folder, tables)
    write_atomically({page: text.encode() for page, text in stale.items()})
    return list(stale)
