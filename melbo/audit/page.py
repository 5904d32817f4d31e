"""Findings of an audit as one page: each with its share, its controls and an example."""

import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

from jinja2 import ChoiceLoader, PackageLoader
from markupsafe import Markup, escape

from melbo.audit.words import TOKEN
from melbo.evaluation.report import templates

Part = Literal["forced", "shared", "other"]
_TAGS: dict[Part, tuple[str, str]] = {
    "forced": ('<span class="forced">', "</span>"),
    "shared": ("<mark>", "</mark>"),
    "other": ("", ""),
}


def page(findings: Mapping[str, Any]) -> str:
    """Write the findings of an audit as HTML.

    The page needs no other file.

    Args:
        findings: Content of ``findings.json``.
    """
    # the style is that of the report of a run
    loaders = [PackageLoader(f"melbo.{room}", ".") for room in ("audit", "evaluation")]
    environment = templates(ChoiceLoader(loaders))
    environment.filters.update(
        percent=percent, interval=interval, duration=duration, told=_told, quote=shlex.quote
    )
    environment.globals.update(said=_said)
    return environment.get_template("page.html.j2").render(findings)


def parts_of_reply(
    text: str, words: Collection[str], forced: str = ""
) -> Iterator[tuple[Part, str]]:
    """Cut a reply where the words that its theme shares begin and end.

    Args:
        text: The reply.
        words: Words of the theme, in lower case.
        forced: Text that the reply was made to begin with, in which nothing is marked.

    Yields:
        Each piece of the text with its part; together they are the whole text.
    """
    begun = 0
    if forced.strip() and text.lstrip().startswith(forced.strip()):
        begun = text.index(forced.strip()) + len(forced.strip())
        yield "forced", text[:begun]
    last = begun
    for match in re.compile(TOKEN).finditer(text, begun):
        if match.group().lower() in words:
            if last < match.start():
                yield "other", text[last : match.start()]
            yield "shared", match.group()
            last = match.end()
    if last < len(text):
        yield "other", text[last:]


def percent(share: float | None) -> str:
    """Share in whole percent; a dash where it was not measured.

    Args:
        share: The share, 0 to 1.
    """
    return "–" if share is None else f"{100 * share:.0f} %"


def interval(ends: tuple[float, float]) -> str:
    """Interval of a share in whole percent.

    Args:
        ends: Its lower and upper end, 0 to 1.
    """
    low, high = ends
    return f"{100 * low:.0f}–{100 * high:.0f} %"


def duration(seconds: float) -> str:
    """Length of time in its two largest units.

    Args:
        seconds: The length of time.
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _said(finding: Mapping[str, Any], example: Mapping[str, Any]) -> Markup:
    """The reply of an example with its parts marked."""
    reply, forced = example["reply"].strip(), example.get("forced", "")
    parts = parts_of_reply(reply, finding["words"], forced)
    return Markup("").join(
        Markup(_TAGS[part][0]) + escape(piece) + Markup(_TAGS[part][1]) for part, piece in parts
    )


def _told(value: Any) -> str:
    """A setting in words."""
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {_told(inside)}" for key, inside in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_told, value))
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
