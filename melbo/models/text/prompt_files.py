"""Files of prompts: one a line, or JSON where a prompt has several lines or turns."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from melbo.errors import MelboError
from melbo.models.text.conversation import Conversation, check_unicode

#: Names of the texts of a pair in JSON: with and without a behaviour, or a prompt and its answer.
CONTRAST, ANSWERS = ("plus", "minus"), ("prompt", "answer")
_PROMPT = 'a string, {"prompt": …}, {"text": …} or {"messages": [{"role": …, "content": …}, …]}'


def read_texts(path: str | Path) -> list[str]:
    r"""Read prompts from a file, one a line; blank lines are left out.

    A line ends at ``\n`` or ``\r\n`` and nowhere else. In a file whose name ends in ``.jsonl`` each
    line is JSON: a string, ``{"prompt": …}`` or ``{"text": …}``, whose text may have several lines,
    or ``{"messages": [{"role": …, "content": …}, …]}`` with several turns. An assistant's turn at
    the end is the beginning of the reply. Other entries of an object are ignored.

    Args:
        path: The file.

    Returns:
        The prompts; those of ``messages`` are `Conversation`.

    Raises:
        MelboError: The file cannot be read, is not UTF-8, holds no prompts, or a line of JSON holds
            something else; names the line.
    """
    if _is_jsonl(path):
        texts = [_prompt(row, where) for where, row in _rows(path)]
    else:
        texts = [line for _, line in _lines(path, "one prompt a line")]
    if not texts:
        raise MelboError(f"{path} holds no prompts: expected one a line")
    return texts


def read_pairs(path: str | Path, names: tuple[str, str] = CONTRAST) -> tuple[list[str], list[str]]:
    r"""Read pairs of texts from a file, a pair a line with a tab between; blank lines are left out.

    A line ends at ``\n`` or ``\r\n`` and nowhere else. In a file whose name ends in ``.jsonl`` each
    line is a JSON object with a text under each of the two names; other entries are ignored.

    Args:
        path: The file.
        names: Names of the two texts in JSON: `CONTRAST` or `ANSWERS`.

    Returns:
        The first and the second text of each pair (with and without a behaviour, for instance).

    Raises:
        MelboError: The file cannot be read, is not UTF-8, holds no pairs, or a line does not hold
            two texts; names the line.
    """
    if _is_jsonl(path):
        pairs = [_pair(row, names, where) for where, row in _rows(path)]
    else:
        pairs = []
        for number, line in _lines(path, "a pair a line"):
            parts = [part.strip() for part in line.split("\t")]
            if len(parts) != 2 or not all(parts):
                raise MelboError(
                    f"line {number} of {path} holds {len([p for p in parts if p])} texts: "
                    "expected two with a tab between"
                )
            pairs.append((parts[0], parts[1]))
    if not pairs:
        raise MelboError(f"{path} holds no pairs: expected two texts a line, with a tab between")
    return [a for a, _ in pairs], [b for _, b in pairs]


def _is_jsonl(path: str | Path) -> bool:
    """Tell whether each line of a file is JSON.

    Raises:
        MelboError: The whole file is one piece of JSON, whose lines mean nothing.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".json":
        raise MelboError(
            f"{path} is JSON as a whole: expected text with one prompt a line, "
            "or a file .jsonl with JSON on each line"
        )
    return suffix == ".jsonl"


def _lines(path: str | Path, content: str) -> list[tuple[int, str]]:
    """Lines of a text file that are not blank, with their numbers, which count from 1.

    Args:
        path: The file.
        content: Expected content, in words.

    Raises:
        MelboError: The file cannot be read, or is not UTF-8.
    """
    try:
        text, reason = Path(path).read_bytes().decode("utf-8-sig"), ""
    except (OSError, UnicodeDecodeError) as err:
        text, reason = "", getattr(err, "strerror", None) or "not UTF-8"
    if "\0" in text:  # ASCII in UTF-16 or UTF-32 is valid UTF-8
        reason = "not UTF-8"
    if reason:
        raise MelboError(f"cannot read {path} ({reason}): expected a text file with {content}")
    lines = text.replace("\r\n", "\n").split("\n")
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _rows(path: str | Path) -> Iterator[tuple[str, Any]]:
    """Values on the lines of a file of JSON, each with its place in words.

    Raises:
        MelboError: The file cannot be read, or a line is not JSON; names the line.
    """
    for number, line in _lines(path, "JSON on each line"):
        where = f"line {number} of {path}"
        try:
            yield where, json.loads(line)
        # of lists in lists, a thousand deep
        except (ValueError, RecursionError) as err:
            raise MelboError(f"{where} is not JSON ({err}): expected JSON on each line") from err


def _prompt(row: Any, where: str) -> str:
    """Prompt on a line of JSON.

    Raises:
        MelboError: There is none, or several.
    """
    if isinstance(row, str):
        return _checked(row, where, _PROMPT)
    names = [name for name in ("prompt", "text", "messages") if name in _names(row)]
    if len(names) != 1:
        raise MelboError(f"{where} holds {_told(row)}: expected {_PROMPT}")
    inside = row[names[0]]
    if names[0] != "messages":
        return _checked(inside, where, _PROMPT)
    if not isinstance(inside, list):
        raise MelboError(f"{where} holds messages that are no list: expected {_PROMPT}")
    return Conversation(inside, where)


def _pair(row: Any, names: tuple[str, str], where: str) -> tuple[str, str]:
    """Pair on a line of JSON.

    Raises:
        MelboError: There is none.
    """
    first, second = names
    expected = f'{{"{first}": …, "{second}": …}}'
    if not {first, second} <= set(_names(row)):
        raise MelboError(f"{where} holds {_told(row)}: expected {expected}")
    return _checked(row[first], where, expected), _checked(row[second], where, expected)


def _checked(text: Any, where: str, expected: str) -> str:
    """A text that is one.

    Raises:
        MelboError: It is something else, blank, or not valid UTF-8.
    """
    if not isinstance(text, str):
        raise MelboError(f"{where} holds {_told(text)} for a text: expected {expected}")
    if not text.strip():
        raise MelboError(f"{where} holds a blank text: remove the line or write it out")
    check_unicode(text, where)
    return text


def _names(row: Any) -> Sequence[str]:
    return list(row) if isinstance(row, dict) else []


def _told(value: Any) -> str:
    """A value of JSON in words, for messages."""
    if isinstance(value, dict):
        return f"an object with {', '.join(map(repr, value))}"[:80] if value else "an empty object"
    kinds = {list: "a list", bool: "true or false", type(None): "null", str: "a string"}
    return kinds.get(type(value), "a number")
