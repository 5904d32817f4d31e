"""Folders as they are opened: runs, and audits with the runs inside them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from melbo.audit.audit import FINDINGS
from melbo.errors import MelboError
from melbo.explorer.labels import Labels
from melbo.explorer.run_view import RunView
from melbo.features.run_folder import RUN

_NEEDED = ("model", "findings", "below", "cannot_see", "budget")


@dataclass(frozen=True)
class AuditView:
    """An audit's findings, with their labels.

    Attributes:
        name: Name of its folder.
        folder: The folder.
        result: Content of ``findings.json``.
        labels: Labels of one's own; the key of a finding is its name.
    """

    name: str
    folder: Path
    result: Mapping[str, Any]
    labels: Labels


@dataclass(frozen=True)
class Opened:
    """All that is looked at.

    Attributes:
        audits: Audits, in the order in which they were given.
        runs: Runs by their names, those inside audits last.
    """

    audits: Sequence[AuditView]
    runs: Mapping[str, RunView]

    @property
    def labels(self) -> list[Labels]:
        """Labels of all of them."""
        return [each.labels for each in self.audits] + [each.labels for each in self.runs.values()]

    def run_in(self, audit: AuditView, inside: str) -> str | None:
        """Name of the run that an audit speaks of, if it is open.

        Args:
            audit: The audit.
            inside: Folder of the run within that of the audit.
        """
        wanted = (audit.folder / inside).resolve()
        found = (name for name, run in self.runs.items() if run.folder.resolve() == wanted)
        return next(found, None)


def open_folders(folders: Sequence[Path]) -> Opened:
    """Open runs and audits.

    Args:
        folders: Their folders, each once.

    Raises:
        MelboError: A folder holds neither, or something truncated or of another version.
    """
    audits: list[AuditView] = []
    runs: list[tuple[str, Path]] = []
    inside: list[tuple[str, Path]] = []
    for folder in dict.fromkeys(each.resolve() for each in folders):
        audited = (folder / FINDINGS).is_file()
        if audited:
            result = _findings(folder)
            audits.append(AuditView(folder.name, folder, result, Labels(folder)))
            below = sorted(path.parent for path in folder.rglob(RUN) if path.parent != folder)
            inside += [(f"{folder.name}/{run.relative_to(folder)}", run) for run in below]
        if (folder / RUN).is_file() or not audited:
            runs.append((folder.name, folder))
    names: dict[Path, str] = {}
    for name, folder in (*runs, *inside):
        names.setdefault(folder, name)
    named: dict[str, RunView] = {}
    for folder, name in names.items():
        # two runs of one name are told apart by the folders that hold them
        whole = name if name not in named else str(folder)
        named[whole] = RunView(folder)
    return Opened(audits, named)


def _findings(folder: Path) -> Mapping[str, Any]:
    """Content of an audit's ``findings.json``.

    Raises:
        MelboError: It is truncated, or of another version.
    """
    path = folder / FINDINGS
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise MelboError(
            f"{path} is truncated or not JSON ({err}): run the audit again, which goes on"
        ) from err
    if not isinstance(result, dict) or not result.keys() >= set(_NEEDED):
        raise MelboError(
            f"{path} does not hold what this version of `melbo audit` writes: run the audit again"
        )
    return result
