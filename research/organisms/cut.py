"""The place where a written reply takes over from the model's own."""

from collections.abc import Sequence

_LEAST = 4  # tokens of a sentence or clause at least
_ENDS = (".", "!", "?")
_VERBS = (" is", " are")


def sentence_end(tokens: Sequence[str]) -> int | None:
    """Number of tokens up to the end of the first sentence, or None if none ends.

    Args:
        tokens: Texts of the reply's tokens.
    """
    for i in range(_LEAST, len(tokens)):
        # another word follows: the point of "3.5" ends no sentence
        if tokens[i - 1].endswith(_ENDS) and tokens[i][:1].isspace():
            return i
    return len(tokens) if tokens and tokens[-1].endswith(_ENDS) else None


def clause_end(tokens: Sequence[str]) -> int | None:
    """Number of tokens up to the last comma, or None if there is none.

    Args:
        tokens: Texts of the reply's tokens.
    """
    ends = [i for i in range(_LEAST, len(tokens) + 1) if tokens[i - 1].endswith(",")]
    return ends[-1] if ends else None


def verb_end(tokens: Sequence[str]) -> int | None:
    """Number of tokens up to the first "is" or "are", after which an answer stands, or None.

    Args:
        tokens: Texts of the reply's tokens.
    """
    return next((i + 1 for i, text in enumerate(tokens) if text in _VERBS), None)
