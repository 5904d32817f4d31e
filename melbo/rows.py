"""Results that are kept as they come: a JSON object a line, so that work that was broken off goes on, and nothing is done twice."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .errors import MelboError

Row = dict[str, Any]


class Rows:
    """Rows in a file, or in memory only.

    Attributes:
        every: The rows, first to last.

    Args:
        path: The file; made, with its folder, with the first row. A last line that was cut is written over by the next row.

    Raises:
        MelboError: It cannot be read, or holds something else.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self.every: list[Row] = []
        self._whole = self._size = 0  # bytes: up to the end of the last whole line, and in all
        if self.path is None or not self.path.exists():
            return
        try:
            data = self.path.read_bytes()
        except OSError as err:
            raise MelboError(f"cannot read {self.path} ({err.strerror}): give another file") from err
        self._whole, self._size = data.rfind(b"\n") + 1, len(data)
        for i, line in enumerate(data[: self._whole].splitlines()):
            try:
                row = json.loads(line)
            except ValueError as err:
                raise MelboError(f"line {i + 1} of {self.path} is not JSON ({err}): give another file") from err
            if not isinstance(row, dict):
                raise MelboError(f"line {i + 1} of {self.path} is no row: give another file")
            self.every.append(row)

    def add(self, row: Row) -> None:
        """Keep a row.

        Raises:
            MelboError: It cannot be written, or somebody else has written to it.
        """
        self.every.append(row)
        if self.path is None:
            return
        line = (json.dumps(row) + "\n").encode()
        if self.path.exists() and self.path.stat().st_size != self._size:
            raise MelboError(f"{self.path} is not as it was read: another process writes to it; give each a file of its own")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("r+b" if self.path.exists() else "wb") as file:
                file.truncate(self._whole)
                file.seek(self._whole)
                file.write(line)
        except OSError as err:
            raise MelboError(f"cannot write {self.path} ({err.strerror}): give another file") from err
        self._whole = self._size = self._whole + len(line)

    def of(self, case: Mapping[str, Any]) -> list[Row]:
        """Rows that agree with a case in everything it says."""
        return [row for row in self.every if all(key in row and row[key] == value for key, value in case.items())]

    def missing(self, cases: Iterable[Row]) -> list[Row]:
        """Cases that have no row."""
        return [case for case in cases if not self.of(case)]
