"""Results that are kept as they come: a JSON object a line, so that work that was broken off goes on, and nothing is done twice."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .errors import MelboError
from .features import write_whole

Row = dict[str, Any]


class Rows:
    """Rows in a file, or in memory only.

    Attributes:
        every: The rows, first to last.

    Args:
        path: The file; made with the first row. A last line that was cut is dropped.

    Raises:
        MelboError: The file holds something else.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self.every: list[Row] = []
        if self.path is None or not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").split("\n")
        for i, line in enumerate(line for line in lines if line):
            try:
                self.every.append(json.loads(line))
            except json.JSONDecodeError as err:
                if line is not lines[-1]:
                    raise MelboError(f"line {i + 1} of {self.path} is not JSON ({err}): give another file") from err
                write_whole({self.path: "".join(json.dumps(row) + "\n" for row in self.every).encode()})

    def add(self, row: Row) -> None:
        """Keep a row."""
        self.every.append(row)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def of(self, case: Mapping[str, Any]) -> list[Row]:
        """Rows that agree with a case in everything it says."""
        return [row for row in self.every if case.items() <= row.items()]

    def missing(self, cases: Iterable[Row]) -> list[Row]:
        """Cases that have no row."""
        return [case for case in cases if not self.of(case)]
