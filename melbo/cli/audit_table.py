"""Findings of an audit as a table in the terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from melbo.audit.page import Part, duration, interval, parts_of_reply, percent
from melbo.cli.terminal import console as terminal
from melbo.cli.terminal import next_step

_STYLES: dict[Part, str] = {"forced": "dim", "shared": "bold", "other": ""}


def show_findings(result: Mapping[str, Any], out: Path) -> None:
    """Print the findings, what each elicitor's share bought, and a command to go on with.

    Args:
        result: Content of ``findings.json``.
        out: Folder of the audit.
    """
    console = terminal()
    findings, budget = result["findings"], result["budget"]
    if not findings:
        console.print(
            f"Nothing was found with this budget of {budget['tokens']:,} tokens. That does not "
            "mean that nothing is hidden: raise --budget, give --prompts of the model's own kind, "
            "or --base."
        )
    for number, finding in enumerate(findings, 1):
        _show_finding(console, number, finding, bool(result["base"]))
    if result["below"]:
        names = [finding["name"] for finding in result["below"]]
        console.print(f"\nDid not hold on held-out prompts ({len(names)}):", style="bold")
        console.print(Padding(Text("; ".join(names)), (0, 0, 0, 2)))
    _show_shares(console, budget)
    commands = (_again(f["reproduce"], result["model"]["name"], out) for f in findings)
    usual = ("explore", out) if findings else ("openings", result["model"]["name"])
    next_step(*next(filter(None, commands), usual))


def _again(reproduce: Mapping[str, Any], model: str, out: Path) -> tuple[object, ...] | None:
    """Words of the command that brings a finding out again, or None where there is none."""
    if "folder" in reproduce:
        return ("chat", out / reproduce["folder"], "--feature", 0)
    if reproduce["kind"] not in ("opening", "continuation"):
        return None
    after = ["--after-sentence"] if reproduce["kind"] == "continuation" else []
    return ("openings", model, "--opening", reproduce["text"], *after)


def _show_finding(console: Console, number: int, finding: Mapping[str, Any], base: bool) -> None:
    """A line of shares, what brings the finding out, and an example beside the unsteered reply."""
    console.print(Text(f"{number}. {finding['name']}", style="bold"))
    shares = [
        f"{percent(finding['share'])} of held-out prompts ({interval(finding['interval'])})",
        f"unsteered {percent(finding['unsteered'])}",
        f"random {percent(finding['control'])}",
    ]
    if base:
        shares.append(f"base {percent(finding['base'])}")
    for line in (", ".join(shares), f"brought out by: {finding['elicited_by']}"):
        console.print(Padding(Text(line), (0, 0, 0, 3)))
    if example := finding["example"]:
        reply = _one_line(example["reply"])
        said = Text()
        forced = _one_line(example["forced"]) if example.get("forced") else ""
        for part, piece in parts_of_reply(reply, finding["words"], forced):
            said.append(piece, style=_STYLES[part])
        rows = Table.grid(padding=(0, 1, 0, 0))
        rows.add_row("prompt:", Text(_one_line(example["prompt"])))
        rows.add_row("reply:", said)
        rows.add_row("unsteered:", Text(_one_line(example["unsteered"])))
        console.print(Padding(rows, (0, 0, 0, 3)))


def _show_shares(console: Console, budget: Mapping[str, Any]) -> None:
    """A row for each elicitor."""
    table = Table(show_edge=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("elicitor")
    for name in ("tokens", "candidates", "replies", "fluent"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("findings")
    for share in budget["shares"]:
        found = share["error"] or ", ".join(map(str, share["findings"])) or "none"
        numbers = (f"{share[name]:,}" for name in ("tokens", "candidates", "replies"))
        table.add_row(Text(share["elicitor"]), *numbers, percent(share["fluent"]), Text(found))
    console.print()
    console.print(table)
    console.print(
        f"{budget['spent']:,} of {budget['tokens']:,} tokens, {duration(budget['seconds'])}"
    )


def _one_line(text: str) -> str:
    """A text on one line, without characters that would steer the terminal."""
    words = " ".join(text.split())
    return "".join(c if c.isprintable() else "�" for c in words) or "(empty reply)"
