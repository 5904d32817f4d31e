"""Shares of prompts on which themes come out: as found, with a quote, with a learnt vector."""

from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

from melbo.audit.audit import LOG, Audit
from melbo.audit.findings import Finding
from melbo.audit.prove import Best, Proof
from melbo.audit.themes import Theme
from melbo.progress import track
from melbo.records import ResultLog, Row
from research.audits.named import behaviours_fired, behaviours_named

#: Themes at most that are amplified where nothing was planted in them.
MOST = 6
_SCREENED = ("settings", "plan", "find", "screen", "base", "failure")


def amplified(
    audit: Audit, behaviours: Sequence[str], out: Path, planted: bool = True
) -> list[Row]:
    """Amplify the themes of an audit, whatever they cost, and count them on held-out prompts.

    Args:
        audit: The audit.
        behaviours: Behaviours that are looked for.
        out: Folder for its log; an audit that was screened there is gone on with.
        planted: Whether to take the themes that name a behaviour; otherwise the first `MOST`,
            whatever they are.

    Returns:
        A row for each theme.
    """
    with track(audit.budget, "tokens") as bar:
        themes, proof = audit.screened(out, bar)
        said = [behaviours_named([r.text for r in t.replies], behaviours) for t in themes]
        if planted:
            themes = [theme for theme, names in zip(themes, said, strict=True) if names]
        return _rows(proof, themes if planted else themes[:MOST], behaviours)


def screened_before(audit: Path, out: Path) -> None:
    """Let a folder begin with the screening of an audit, if there is one and it has none yet.

    Args:
        audit: Folder of the audit.
        out: The other folder.
    """
    log = ResultLog(out / LOG)
    if not log.rows:
        for row in ResultLog(audit / LOG).rows:
            if row["stage"] in _SCREENED:
                log.add(row)


def _rows(proof: Proof, themes: Sequence[Theme], behaviours: Sequence[str]) -> list[Row]:
    """See `amplified`."""
    if not themes:
        return []
    found = proof.chosen(themes)
    quoted = proof.quoted(themes, found)
    ways: dict[str, Best] = {
        "found": found,
        "quote": quoted,
        "vector": proof.amplified(themes, found, inf),
        "kept": proof.amplified(themes, quoted, inf),
    }
    tested = {way: proof.reported(themes, best) for way, best in ways.items()}
    return [
        {
            "theme": theme.name,
            "names": behaviours_named([r.text for r in theme.replies], behaviours),
            **{way: _shares(findings[k], behaviours) for way, findings in tested.items()},
        }
        for k, theme in enumerate(themes)
    ]


def _shares(finding: Finding, behaviours: Sequence[str]) -> Mapping[str, Any]:
    """Shares of a theme, what brings it out, and the behaviours that fire."""
    return {
        "by": finding.elicited_by,
        "validation": finding.validated.share,
        "test": finding.shown.share,
        "interval": list(finding.shown.interval),
        "fires": behaviours_fired([r.text for r in finding.held_out], behaviours),
    }
