"""Labels, stars and notes of one's own, kept in a folder beside what they are about."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from melbo.errors import MelboError
from melbo.records import to_json, write_atomically

_FILE = "labels.json"
_SCHEMA = 1


@dataclass(frozen=True)
class Label:
    """Remarks of one's own on a feature or a finding.

    Attributes:
        name: Name that one gives it.
        star: Whether it is starred.
        note: Note on it.
    """

    name: str = ""
    star: bool = False
    note: str = ""

    @classmethod
    def of(cls, saved: Any) -> "Label":
        """Read a saved label.

        Raises:
            ValueError: It is none.
        """
        kinds = {"name": str, "star": bool, "note": str}
        if not isinstance(saved, dict) or any(
            not isinstance(saved.get(key), kind) for key, kind in kinds.items()
        ):
            raise ValueError(f"{saved!r} is no label")
        return cls(**{key: saved[key] for key in kinds})


class Labels:
    """Labels in ``labels.json`` of a folder; each change is written at once, as a whole file.

    A file that cannot be read, or whose labels are about other features, is set aside under another
    name and never lost. Several pages, and several programs, may write to one folder.

    Args:
        folder: The folder.
        about: File in it that the labels are about, by its content; None for labels that stay valid
            whatever else is there.

    Attributes:
        set_aside: The files that were set aside since the labels were opened.
    """

    def __init__(self, folder: Path, about: str | None = None) -> None:
        self._path = folder / _FILE
        self._about = None if about is None else _digest(folder / about)
        self._lock = Lock()
        self.set_aside: list[Path] = []
        self._labels: dict[str, Label] = {}
        self._labels = self._read()

    def __getitem__(self, key: str) -> Label:
        """Label of a feature or finding; an empty one where there is none."""
        return self._labels.get(key, Label())

    def put(self, key: str, label: Label) -> None:
        """Keep a label, and write it.

        Args:
            key: Feature or finding.
            label: Its label; an empty one takes it out.

        Raises:
            MelboError: The file cannot be written; nothing is changed.
        """
        with self._lock:
            labels = {**self._read(), key: label}
            labels = {key: label for key, label in labels.items() if label != Label()}
            saved = {key: asdict(label) for key, label in labels.items()}
            content = {"schema": _SCHEMA, "about": self._about, "labels": saved}
            write_atomically({self._path: to_json(content)})
            self._labels = labels

    def _read(self) -> dict[str, Label]:
        """Labels in the file; a file that holds others is set aside, and those known are kept."""
        if not self._path.exists():
            return dict(self._labels)
        try:
            saved = json.loads(self._path.read_text(encoding="utf-8"))
            return _labels_of(saved, self._about)
        except (ValueError, OSError):
            self._set_aside()
            return dict(self._labels)

    def _set_aside(self) -> None:
        """Give the file another name.

        Raises:
            MelboError: The folder cannot be written to.
        """
        number = 1
        while (aside := self._path.with_name(f"labels.set-aside-{number}.json")).exists():
            number += 1
        try:
            os.rename(self._path, aside)
        except OSError as err:
            raise MelboError(
                f"{self._path} holds no labels of this run and cannot be set aside "
                f"({err.strerror}): move it away"
            ) from err
        self.set_aside.append(aside)


def _labels_of(saved: Any, about: str | None) -> dict[str, Label]:
    """Read the content of a file of labels.

    Raises:
        ValueError: It is none, or of another version, or about something else.
    """
    if not isinstance(saved, dict) or saved.get("schema") != _SCHEMA:
        raise ValueError("no labels of this version")
    if saved.get("about") != about:
        raise ValueError("labels of other features")
    labels = saved.get("labels")
    if not isinstance(labels, Mapping):
        raise ValueError("no labels")
    return {str(key): Label.of(label) for key, label in labels.items()}


def _digest(path: Path) -> str:
    """SHA-256 of a file; that of nothing where there is no file."""
    return hashlib.sha256(path.read_bytes() if path.is_file() else b"").hexdigest()
