"""The one exception that users meet."""


class MelboError(ValueError):
    """Input that cannot be worked with.

    Every message says in one line what was got, what was expected and what to do. The command line
    prints it and exits with status 2.
    """
