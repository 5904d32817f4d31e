"""Tables of all measurements of dictionaries."""

from research.dictionaries import rival, shrinkage, trained


def page_tables() -> dict[str, str]:
    """Tables that pages may quote, by name, made from the committed rows."""
    return {**trained.page_tables(), **rival.page_tables(), **shrinkage.page_tables()}
