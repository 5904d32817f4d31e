"""Tables of all measurements of dictionaries."""

from research.dictionaries import overlap, rival, shrinkage, trained


def page_tables() -> dict[str, str]:
    """Tables that pages may quote, by name, made from the committed rows."""
    parts = (trained, rival, shrinkage, overlap)
    return {name: table for part in parts for name, table in part.page_tables().items()}
