"""Numbers in tables: a mean with what says how far to trust it, and Markdown."""

from collections.abc import Sequence

from melbo.maths.statistics import mean_and_error


def plus_minus(measure: Sequence[float | None] | None) -> str:
    """Such a pair, to three digits."""
    if measure is None or measure[0] is None:
        return "–"
    return f"{measure[0]:.3g}" + ("" if measure[1] is None else f" ± {measure[1]:.2g}")


def cell(values: Sequence[float | None]) -> str:
    """Mean ± standard error."""
    return plus_minus(mean_and_error(values))


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *lines))
