"""Records on disk: files written whole or not at all, logs of result rows, versions."""

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from melbo.errors import MelboError

Row = dict[str, Any]


def to_json(value: Any) -> bytes:
    """JSON of plain, finite values.

    Raises:
        MelboError: A value is not finite, or has a type that JSON lacks.
    """
    try:
        return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as err:
        raise MelboError(
            f"a value is not finite or not plain and cannot be written as JSON ({err}): "
            "nothing was written"
        ) from err


def write_atomically(files: Mapping[Path, bytes]) -> None:
    """Write files so that each is at any time either the whole old one or the whole new one.

    No file is replaced before all are on the disk.

    Args:
        files: Content of each file.

    Raises:
        MelboError: The files cannot be written; what was there before is untouched.
    """
    parts = {path: path.with_name(path.name + ".part") for path in files}
    try:
        for path, content in files.items():
            parts[path].write_bytes(content)
        for path, part in parts.items():
            os.replace(part, path)
    except OSError as err:
        for part in parts.values():
            part.unlink(missing_ok=True)
        raise MelboError(
            f"cannot write {err.filename} ({err.strerror}): "
            "free some space, or give a folder that can be written to"
        ) from err


def refuse_existing(folder: str | Path, force: bool, names: Sequence[str], what: str) -> None:
    """Refuse to write into a folder, before any work is done for it.

    Args:
        folder: Where files will be written.
        force: Whether files that are there already may be replaced.
        names: Files that count as being there already.
        what: Name for these files in the message, ``"a run"`` for instance.

    Raises:
        MelboError: One of the files is there and ``force`` is not set, or the folder cannot be
            made.
    """
    folder = Path(folder)
    if not force and any((folder / name).exists() for name in names):
        raise MelboError(
            f"{folder} already holds {what}: give another folder, or force=True to replace it"
        )
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not there.is_dir() or not _takes_files(there):
        raise MelboError(
            f"cannot make the folder {folder} "
            f"({there} is not a folder that can be written to): give another one"
        )
    require_writable(folder, names)


def require_writable(folder: str | Path, names: Sequence[str]) -> None:
    """Refuse a folder in which files cannot be written, before any work is done for them.

    Args:
        folder: The folder; one that is not there is not looked at.
        names: Files that will be written in it, or replaced.

    Raises:
        MelboError: The folder is read-only, or one of the files is, or is a folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return
    if not _takes_files(folder):
        raise MelboError(
            f"{folder} cannot be written to: make it writable, or copy it to where you can write"
        )
    for path in (folder / name for name in names):
        if path.is_dir() or (path.exists() and not os.access(path, os.W_OK)):
            raise MelboError(
                f"{path} cannot be written to: remove it, or make it a file that can be written to"
            )


def _takes_files(folder: Path) -> bool:
    """Tell whether a file can be made in a folder, by making one without a name."""
    try:
        with TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


class ResultLog:
    """Result rows in a file, one JSON object a line, or in memory only.

    Each row is written as it comes, so that interrupted work can be resumed.

    Args:
        path: The file, made with its folder when the first row is added; None keeps the rows in
            memory. A last line that was cut short is overwritten by the next row.

    Attributes:
        rows: The rows, first to last.

    Raises:
        MelboError: The file cannot be read, or holds something else.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self.rows: list[Row] = []
        # bytes up to the end of the last whole line, and in all
        self._whole = self._size = 0
        if self.path is None or not self.path.exists():
            return
        try:
            data = self.path.read_bytes()
        except OSError as err:
            raise MelboError(
                f"cannot read {self.path} ({err.strerror}): give another file"
            ) from err
        self._whole, self._size = data.rfind(b"\n") + 1, len(data)
        for i, line in enumerate(data[: self._whole].split(b"\n")[:-1]):
            try:
                row = json.loads(line)
            except ValueError as err:
                raise MelboError(
                    f"line {i + 1} of {self.path} is not JSON ({err}): give another file"
                ) from err
            if not isinstance(row, dict):
                raise MelboError(f"line {i + 1} of {self.path} is no row: give another file")
            self.rows.append(row)

    def add(self, row: Row) -> None:
        """Keep a row, and write it.

        Raises:
            MelboError: The row cannot be written, or another process has written to the file.
        """
        self.rows.append(row)
        if self.path is None:
            return
        line = (json.dumps(row) + "\n").encode()
        if self.path.exists() and self.path.stat().st_size != self._size:
            raise MelboError(
                f"{self.path} is not as it was read: another process writes to it; "
                "give each a file of its own"
            )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("r+b" if self.path.exists() else "wb") as file:
                file.truncate(self._whole)
                file.seek(self._whole)
                file.write(line)
        except OSError as err:
            raise MelboError(
                f"cannot write {self.path} ({err.strerror}): give another file"
            ) from err
        self._whole = self._size = self._whole + len(line)

    def of(self, case: Mapping[str, Any]) -> list[Row]:
        """Rows that have all the entries of a case."""
        return [
            row
            for row in self.rows
            if all(key in row and row[key] == value for key, value in case.items())
        ]

    def missing(self, cases: Iterable[Row]) -> list[Row]:
        """Cases that have no row."""
        return [case for case in cases if not self.of(case)]


def environment() -> dict[str, Any]:
    """Versions and machine that a result was made with, JSON-able."""
    # imported here, so that reading a log does not wait for it
    import torch

    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **versions(),
    }


def versions() -> dict[str, str]:
    """Versions of melbo, torch, transformers and Python, and the precision of float32 products."""
    import torch
    import transformers

    return {
        "melbo": own_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def own_version() -> str:
    """Version of melbo, from the metadata of its installation."""
    try:
        return version("melbo")
    except PackageNotFoundError:
        # run from a checkout that is not installed
        return "unknown"


@cache
def _processor() -> str:
    """Name of the processor, as exactly as the machine gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
