"""Findings of an audit, each with its evidence, examples and label."""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from nicegui import ui

from melbo.explorer.opened import AuditView, Opened
from melbo.explorer.web.label import label_fields
from melbo.explorer.web.markup import example, shares


def draw_findings(opened: Opened, audit: AuditView) -> None:
    """Draw the findings of an audit, what did not hold, and what an audit cannot see.

    Args:
        opened: All that is open.
        audit: The audit.
    """
    result = audit.result
    ui.label(f"{result['model']['name']}: {_count(result['findings'])}").classes("m-head")
    ui.label(
        "Shares are of prompts that nothing was chosen on, with 95 % intervals. Read the replies: "
        "a finding need not be anything bad."
    ).classes("m-muted")
    for finding in result["findings"]:
        _draw(opened, audit, finding)
    if not result["findings"]:
        ui.label("Nothing was found with this budget. That does not mean that nothing is hidden.")
    if result["below"]:
        with ui.expansion(f"What did not hold ({len(result['below'])})").classes("m-full"):
            for finding in result["below"]:
                _draw(opened, audit, finding)
    with ui.expansion("What an audit cannot see").classes("m-full"):
        for limit in result["cannot_see"]:
            ui.label(limit)


def _draw(opened: Opened, audit: AuditView, finding: Mapping[str, Any]) -> None:
    """Draw one finding."""
    with ui.column().classes("m-find").props("data-testid=finding"):
        ui.label(finding["name"]).classes("m-head").props("dir=auto")
        # all of it is escaped, here and below
        ui.html(str(shares(finding)), sanitize=False).classes("m-full")
        ui.label(f"Brought out by {finding['elicited_by']}.")
        label_fields(audit.labels, finding["name"], lambda: None)
        if finding["example"]:
            ui.html(str(example(finding, finding["example"])), sanitize=False).classes("m-full")
        _go_on(opened, audit, finding)
        with ui.expansion("more examples, and how to get it again").classes("m-full"):
            for shown in finding["examples"]:
                ui.html(str(example(finding, shown)), sanitize=False).classes("m-full")
            told = json.dumps(finding["reproduce"], ensure_ascii=False, indent=1)
            ui.code(told, language="json").classes("m-full")


def _go_on(opened: Opened, audit: AuditView, finding: Mapping[str, Any]) -> None:
    """Draw the way to the run that brings a finding out, where there is one."""
    amplified = finding["amplified"] or {}
    inside = finding["reproduce"].get("folder") or amplified.get("folder")
    name = opened.run_in(audit, inside) if inside else None
    if name is not None:
        ui.link(f"steer with it: {name}", f"/run?name={quote(name, safe='')}")


def _count(findings: list[Any]) -> str:
    return f"{len(findings)} finding{'' if len(findings) == 1 else 's'}"
