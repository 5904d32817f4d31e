"""The one exception a user meets."""


class MelboError(ValueError):
    """Input that cannot be worked with.

    Every message says what was got, what was expected and what to do, in one line; the command line prints it and exits with 2.
    """
