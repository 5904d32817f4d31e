"""The one exception that users meet, and the refusal of values of another kind."""


class MelboError(ValueError):
    """Input that cannot be worked with.

    Every message says in one line what was got, what was expected and what to do. The command line
    prints it and exits with status 2.
    """


def require(kind: type, remedy: str, **given: object) -> None:
    """Refuse arguments of another kind, which would fail later and less plainly.

    Args:
        kind: The kind that is expected.
        remedy: How to make one, as the end of the message.
        given: Values of the arguments by their names.

    Raises:
        MelboError: A value is of another kind.
    """
    for name, value in given.items():
        if not isinstance(value, kind):
            raise MelboError(
                f"{name} is of the type {type(value).__name__}, expected {kind.__name__}: {remedy}"
            )
