"""Messages of the package's errors, read off its source, for the pages about errors."""

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from melbo.errors import MelboError

#: Place of a page's list: the files, or folders ending in a slash, whose messages it has.
MARKER = re.compile(r"<!-- messages: ([^>]+?) -->")
_GAP = "…"


@dataclass(frozen=True)
class Message:
    """A message as the source has it.

    Attributes:
        path: File below ``melbo/``.
        line: Line of the ``MelboError``.
        text: The message, with … for what is filled in when it is raised.
    """

    path: str
    line: int
    text: str


def read_messages(root: Path) -> list[Message]:
    """Messages of all errors that the package raises, in the order of the source.

    Args:
        root: Folder that holds ``melbo``.
    """
    package = root / "melbo"
    found = []
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "MelboError":
                text = re.sub("…+", _GAP, "".join(map(_text, node.args[:1])))
                if text.strip(_GAP):
                    place = path.relative_to(package).as_posix()
                    found.append(Message(place, node.lineno, text))
    return sorted(found, key=lambda m: (m.path, m.line))


def _text(node: ast.expr) -> str:
    """Text of an expression, with … where a value is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    return _GAP


def of_files(messages: Sequence[Message], names: Sequence[str]) -> list[Message]:
    """Messages of some files and folders.

    Args:
        messages: All messages.
        names: Files, or folders that end in a slash, below ``melbo/``.

    Raises:
        MelboError: A name has no message.
    """
    kept = []
    for name in names:
        own = [
            m for m in messages if m.path == name or (name[-1] == "/" and m.path.startswith(name))
        ]
        if not own:
            raise MelboError(f"no error is raised in melbo/{name}: take it out of the page")
        kept += own
    return kept


def fill(markdown: str, messages: Sequence[Message], source: str) -> str:
    """Put the lists of messages where a page asks for them.

    Args:
        markdown: The page.
        messages: All messages.
        source: Address that paths below the root of the project are appended to.

    Raises:
        MelboError: The page names a file that raises no error.
    """

    def listed(found: re.Match[str]) -> str:
        return _list(of_files(messages, found[1].split()), source)

    return MARKER.sub(listed, markdown)


def _list(messages: Sequence[Message], source: str) -> str:
    """List of messages by file, with links to their lines."""
    files: dict[str, list[Message]] = {}
    for message in messages:
        files.setdefault(message.path, []).append(message)
    parts = []
    for path, own in files.items():
        rows = "".join(
            f"- `{m.text.replace('`', '')}` [line {m.line}]({source}melbo/{path}#L{m.line})\n"
            for m in own
        )
        parts.append(f"**melbo/{path}**\n\n{rows}")
    return "\n".join(parts)


def matches(quoted: str, message: Message) -> bool:
    """Tell whether a quoted message, … for what is left out, is this one or a part of it.

    Args:
        quoted: The message as a page quotes it.
        message: The message as the source has it.
    """
    parts: Mapping[int, str] = dict(enumerate(quoted.split(_GAP)))
    pattern = ".*".join(re.escape(part) for part in parts.values())
    return re.search(pattern, message.text, re.DOTALL) is not None
