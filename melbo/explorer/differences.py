"""Words in which a reply differs from another to the same prompt."""

import re
from collections.abc import Iterator
from difflib import SequenceMatcher

_PIECE = re.compile(r"\s+|\w+(?:['’]\w+)?|[^\w\s]")


def differences(text: str, other: str) -> Iterator[tuple[bool, str]]:
    """Cut a text where it begins and ends to differ from another, word by word.

    Args:
        text: The text.
        other: The one it is compared with; capitals and white space make no difference.

    Yields:
        Whether a piece differs, and the piece; together they are the whole text.
    """
    pieces, told = _PIECE.findall(text), [p for p in _PIECE.findall(other) if not p.isspace()]
    words = [i for i, piece in enumerate(pieces) if not piece.isspace()]
    matcher = SequenceMatcher(
        None, [pieces[i].lower() for i in words], [p.lower() for p in told], autojunk=False
    )
    differs = [True] * len(pieces)
    for block in matcher.get_matching_blocks():
        for i in words[block.a : block.a + block.size]:
            differs[i] = False
    # white space differs between two words that do
    for i, piece in enumerate(pieces):
        if piece.isspace():
            around = pieces[i - 1 : i] and pieces[i + 1 : i + 2]
            differs[i] = bool(around) and differs[i - 1] and differs[i + 1]
    start = 0
    for i in range(1, len(pieces) + 1):
        if i == len(pieces) or differs[i] != differs[start]:
            yield differs[start], "".join(pieces[start:i])
            start = i
