"""Numbers in tables: means with their spread, and Markdown."""

from collections.abc import Sequence

from melbo.maths.statistics import mean_and_error


def plus_minus(measure: Sequence[float | None] | None) -> str:
    """A mean to three digits with its deviation or error; a dash where it is not known.

    Args:
        measure: The mean, and its deviation or error, which may be None.
    """
    if measure is None or measure[0] is None:
        return "–"
    return f"{measure[0]:.3g}" + ("" if measure[1] is None else f" ± {measure[1]:.2g}")


def cell(values: Sequence[float | None]) -> str:
    """Mean ± standard error of the values that are not None."""
    return plus_minus(mean_and_error(values))


def markdown(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown.

    Args:
        titles: Titles of the columns.
        lines: Cells of each line.
    """
    rows = (titles, ["---"] * len(titles), *lines)
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
