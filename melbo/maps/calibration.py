"""A scale R, and the curve that it was read from."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from melbo.display.figures import Curve, draw_curves, finished
from melbo.display.shown import Record, Shown, Table, number

if TYPE_CHECKING:
    from melbo.display.picture import Picture

Point = tuple[float, float]  # (R, ratio(R))


@dataclass(frozen=True, repr=False)
class Calibration(Shown):
    """A scale, and the curve that it was read from.

    Attributes:
        scale: R, in units of ``h_source``.
        relative: R over the median norm of ``h_source`` (first tokens left out); None where that
            norm is not known.
        nonlinearity: λ, the ratio that R was asked to reach.
        curve: Pairs (R, ratio(R)) over the whole range, ascending in R, on the first few
            directions: the shape of the curve.
        solved: Pairs (R, ratio(R)) on all directions, in the order in which they were tried.
        warning: In plain words, why the scale may not be trusted; None if there is no reason.
    """

    scale: float
    relative: float | None
    nonlinearity: float
    curve: list[Point]
    solved: list[Point]
    warning: str | None

    def describe(self) -> dict[str, Any]:
        """All attributes, JSON-able."""
        return asdict(self)

    def plot(self) -> "Picture":
        """See `Shown.plot`; the curve, with R and λ marked."""
        norms, ratios = zip(*self.curve, strict=True)
        wanted = f"λ = {self.nonlinearity:g}"
        curve = Curve("non-linear ÷ linear part", ratios, self.nonlinearity, wanted)
        xlabel = "R, norm of what is added (log scale)"
        return finished(draw_curves((6.4, 3.6), xlabel, norms, [curve], at=self.scale))

    def _table(self) -> Table:
        share = f", {self.relative:.2f} of the stream's median norm" if self.relative else ""
        title = f"R = {number(self.scale)}{share}, where the ratio is {self.nonlinearity:g}"
        lines = sorted([*self.curve, *self.solved[-1:]])
        notes = [f"Warning: {self.warning}"] if self.warning else []
        return Table(title, ("R", "non-linear ÷ linear part"), lines, notes)

    def _records(self) -> Sequence[Record]:
        """Points of the curve, then those on all directions."""
        parts = {"few": self.curve, "all": self.solved}
        return [
            {"scale": scale, "ratio": ratio, "directions": name}
            for name, points in parts.items()
            for scale, ratio in points
        ]
