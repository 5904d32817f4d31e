"""Prompts of several turns."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from melbo.errors import MelboError

#: A turn of a conversation: its ``role`` and its ``content``.
Turn = Mapping[str, str]


class Conversation(str):
    """A prompt of several turns; as a string it is the text that a report shows.

    An assistant's turn at the end is the beginning of the reply, which the model goes on with. The
    text of a conversation of one turn is its content; in others each turn begins with its role.

    Args:
        turns: The turns, each with its ``role`` and ``content``. A content may be a list of parts
            of type ``"text"``, which are joined.
        where: The place of the conversation, in words, for messages.

    Attributes:
        turns: The turns.

    Raises:
        MelboError: There is no turn of a user, a turn has other entries, or a content is no text,
            is not valid UTF-8, or is blank (a system message may be).
    """

    __slots__ = ("turns",)
    turns: tuple[Turn, ...]

    def __new__(cls, turns: Sequence[Turn], where: str = "the prompt") -> Self:
        """Check the turns and write them out.

        Raises:
            MelboError: See `Conversation`.
        """
        checked = tuple(_check_turn(turn, f"turn {i} of {where}") for i, turn in enumerate(turns))
        if all(turn["role"] != "user" for turn in checked):
            raise MelboError(f"{where} has no turn of a user: expected one at least")
        lines = [f"{turn['role']}: {turn['content']}" for turn in checked]
        made = super().__new__(
            cls, checked[0]["content"] if len(checked) == 1 else "\n".join(lines)
        )
        made.turns = checked
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        """Arguments that make it again, for copies."""
        return (self.turns,)


def check_unicode(text: str, where: str) -> None:
    """Refuse text that no UTF-8 file can hold, such as half of a surrogate pair.

    Args:
        text: The text.
        where: The text's name, for the message.

    Raises:
        MelboError: There is such a character.
    """
    if not text.isascii() and text.encode(errors="ignore").decode() != text:
        raise MelboError(f"{where} is not valid UTF-8: write it anew")


def _check_turn(turn: Any, where: str) -> Turn:
    """Check one turn.

    Raises:
        MelboError: It is none; see `Conversation`.
    """
    if not isinstance(turn, Mapping) or set(turn) != {"role", "content"}:
        got = sorted(map(str, turn)) if isinstance(turn, Mapping) else type(turn).__name__
        raise MelboError(f"{where} holds {got}: expected a role and a content")
    role, content = turn["role"], turn["content"]
    if isinstance(content, (list, tuple)) and all(
        isinstance(part, Mapping)
        and part.get("type") == "text"
        and isinstance(part.get("text"), str)
        for part in content
    ):
        content = "".join(part["text"] for part in content)
    if not isinstance(role, str) or not isinstance(content, str):
        raise MelboError(f"{where} holds something else than text: expected a role and a content")
    if not content.strip() and role != "system":
        raise MelboError(f"{where} is blank: remove it or write it out")
    check_unicode(role + content, where)
    return {"role": role, "content": content}
