"""Numbers in tables: a mean with what says how far to trust it, and Markdown."""

from collections.abc import Sequence
from statistics import mean, stdev


def mean_and_deviation(values: Sequence[float | None]) -> tuple[float, float | None] | None:
    """Mean and standard deviation of what is known: how much one measurement differs from another. None where nothing is known."""
    known = [v for v in values if v is not None]
    return (mean(known), stdev(known) if len(known) > 1 else None) if known else None


def mean_and_error(values: Sequence[float | None]) -> tuple[float, float | None] | None:
    """Mean and standard error of what is known: how well the mean is known. None where nothing is."""
    found = mean_and_deviation(values)
    if found is None or found[1] is None:
        return found
    return found[0], found[1] / sum(v is not None for v in values) ** 0.5


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
