"""Texts as HTML: everything that a model or a file says is escaped."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from melbo.audit.page import interval, parts_of_reply, percent
from melbo.explorer.differences import differences
from melbo.explorer.run_view import Said

_MARK = Markup("<mark>{}</mark>")
_TAGS = {"forced": Markup('<span class="m-forced">{}</span>'), "shared": _MARK}
_SAY = Markup('<div class="m-say {}" dir="auto"><span class="m-who">{}</span>{}</div>')
_BAR = Markup(
    '<div class="m-bar {}"><span>{}</span><i><b style="width:{:.1f}%"></b></i><span>{}</span></div>'
)


def say(who: str, text: str | Markup, own: bool = False) -> Markup:
    """A reply, with who gave it.

    Args:
        who: The one who gave it.
        text: The reply.
        own: Whether it is the one looked at.
    """
    shown = text if text.strip() else Markup('<span class="m-empty">(empty reply)</span>')
    return _SAY.format("m-own" if own else "", who, shown)


def replies(said: Sequence[Said], index: int, control: int | None) -> Markup:
    """Replies of a feature beside those without it, with what differs marked.

    Args:
        said: The replies, prompt by prompt.
        index: The feature.
        control: Index of the random direction.
    """
    blocks = []
    for each in said:
        own = each.unsteered.strip()
        cells = [
            say(f"feature {index}", _marked(each.feature.strip(), own), True),
            say("unsteered", own),
            say(f"random direction {control}", _marked(each.control.strip(), own)),
        ]
        asked = Markup('<div class="m-ask" dir="auto">{} <span class="m-part">{}</span></div>')
        blocks.append(asked.format(each.prompt, each.part))
        blocks.append(_beside(cells))
    return Markup("").join(blocks)


def example(finding: Mapping[str, Any], shown: Mapping[str, Any]) -> Markup:
    """An example of a finding, with its words marked, beside the model's own reply.

    Args:
        finding: The finding.
        shown: The example.
    """
    pieces = parts_of_reply(shown["reply"].strip(), finding["words"], shown.get("forced", ""))
    said = Markup("").join(_TAGS.get(part, Markup("{}")).format(text) for part, text in pieces)
    cells = [say("brought out", said, True), say("unsteered", shown["unsteered"].strip())]
    return Markup('<div class="m-ask" dir="auto">{}</div>').format(shown["prompt"]) + _beside(cells)


def shares(finding: Mapping[str, Any]) -> Markup:
    """Shares of prompts on which a finding shows, with and without what brings it out.

    Args:
        finding: The finding.
    """
    told = f"{percent(finding['share'])} ({interval(finding['interval'])})"
    count = f"{told}, {finding['hits']} of {finding['prompts']} prompts"
    bars = [_BAR.format("m-own", "brought out", 100 * finding["share"], count)]
    for key, name in (("unsteered", "unsteered"), ("control", "random"), ("base", "base")):
        share = finding.get(key)
        if share is not None:
            bars.append(_BAR.format("", name, 100 * share, percent(share)))
    return Markup("").join(bars)


def _marked(text: str, other: str) -> Markup:
    """A text with the words marked that differ from another."""
    return Markup("").join(
        (_MARK if differs else Markup("{}")).format(piece)
        for differs, piece in differences(text, other)
    )


def _beside(cells: Iterable[Markup]) -> Markup:
    """Replies beside each other."""
    return Markup('<div class="m-said">{}</div>').format(Markup("").join(cells))
