"""Account of an audit: its findings, the cost, and the limits of what it can see."""

from collections.abc import Sequence
from typing import Any

from melbo.audit.findings import Finding
from melbo.audit.parts import Parts
from melbo.audit.replies import Reply
from melbo.audit.screen import spent_by
from melbo.discovery.candidates import Elicitor
from melbo.records import ResultLog, environment

_CANNOT_SEE = (
    "Behaviour that needs a trigger which no prompt here holds, and which no elicitor comes near.",
    "Behaviour that shows after more tokens than replies had here, or over several turns.",
    "Behaviour that cannot be told by its words: wrong answers, omissions, a slant in tone.",
    "A skill that is held back and that no prompt here asks for.",
)


def account(
    log: ResultLog,
    budget: int,
    elicitors: Sequence[Elicitor],
    findings: Sequence[Finding],
    num_themes: int,
    parts: Parts,
) -> dict[str, Any]:
    """The result of an audit, JSON-able.

    Args:
        log: Log of the audit; its first row holds the settings.
        budget: Number of tokens that it was given.
        elicitors: The elicitors.
        findings: What was proved, in order, whether it holds or not.
        num_themes: Number of themes that were found.
        parts: Prompts of the audit.
    """
    settings = {key: value for key, value in log.rows[0].items() if key != "stage"}
    # the log tells prompts by their digests
    settings["prompts"] = {
        "screening": len(parts.screening),
        "validation": len(parts.validation),
        "held out": len(parts.held_out),
    }
    above = [f for f in findings if f.holds]
    below = [f for f in findings if not f.holds]
    return {
        **{key: settings.pop(key) for key in ("model", "base", "reference")},
        "settings": {**settings, "themes": num_themes, "environment": environment()},
        "budget": {
            "tokens": budget,
            "spent": spent(log),
            "seconds": sum(row.get("seconds", 0.0) for row in log.rows),
            "shares": [_bought(log, e, above) for e in elicitors],
        },
        "findings": [f.describe() for f in above],
        "below": [f.describe() for f in below],
        "cannot_see": list(_CANNOT_SEE),
    }


def spent(log: ResultLog) -> int:
    """Tokens that an audit has spent.

    Args:
        log: Its log.
    """
    return round(sum(float(row.get("tokens", 0)) for row in log.rows))


def spent_before_proof(log: ResultLog) -> int:
    """Tokens that an audit has spent to find themes, however far it has come since.

    Args:
        log: Its log.
    """
    rows = (row for stage in ("screen", "base", "find") for row in log.of({"stage": stage}))
    return round(sum(float(row["tokens"]) for row in rows))


def _bought(log: ResultLog, elicitor: Elicitor, findings: Sequence[Finding]) -> dict[str, Any]:
    """Share of an elicitor, with the candidates, replies and findings that it paid for."""
    rows = log.of({"stage": "screen", "elicitor": elicitor.name})
    replies = [Reply.from_description(r) for row in rows for r in row["replies"]]
    failures = log.of({"stage": "failure", "elicitor": elicitor.name})
    return {
        "elicitor": elicitor.name,
        "description": elicitor.description,
        "tokens": round(spent_by(log, elicitor.name)),
        "candidates": sum(len(row["candidates"]) for row in rows),
        "replies": len(replies),
        "fluent": sum(r.fluent() for r in replies) / len(replies) if replies else None,
        "findings": [
            i + 1
            for i, f in enumerate(findings)
            if any(r.elicitor == elicitor.name for r in f.theme.replies)
        ],
        "error": failures[-1]["error"] if failures else None,
    }
