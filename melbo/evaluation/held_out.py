"""Prompts that nothing was learnt from or chosen on, and the refusal of others."""

from collections.abc import Container, Sequence

from melbo.errors import MelboError
from melbo.models.text.prompts import Prompts, require_prompts


def refuse_reused(prompts: Prompts, used: Container[Sequence[int]], role: str, use: str) -> None:
    """Refuse prompts that were used before.

    Args:
        prompts: The prompts.
        used: Token ids of the prompts that were used.
        role: Role of the prompts, for the message (``"test"``).
        use: Their use before, for the message (``"is one of the map's"``).

    Raises:
        MelboError: One of the prompts was used.
    """
    require_prompts(**{role.replace("-", "_"): prompts})
    for text, tokens in zip(prompts.texts, prompts.tokens, strict=True):
        if tokens in used:
            raise MelboError(
                f"the {role} prompt {text!r} {use}: scores on it would flatter; give another"
            )
