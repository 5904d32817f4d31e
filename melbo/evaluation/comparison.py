"""Result of a comparison of recipes: its rows, its summary, a table and a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from melbo.discovery.recipes import RECIPES, is_control
from melbo.display.figures import finished
from melbo.display.shown import Record, Shown, Table
from melbo.errors import MelboError
from melbo.evaluation.plot import png
from melbo.evaluation.tables import markdown, plus_minus
from melbo.features.generate import Completions
from melbo.maths.statistics import mean_and_deviation
from melbo.records import refuse_existing, to_json, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from melbo.display.picture import Picture

_FILES = ("compare.json", "compare.md", "compare.png", "completions.jsonl", "run.json")
_PANELS = {
    "effect": "‖Δ‖ on the fit's prompts",
    "novelty": "novelty of the reply",
    "kl": "KL of its first token, nats",
    "broken": "share broken",
    "distinct": "distinct replies among active",
    "explained": "explained",
}


@dataclass(frozen=True)
class ComparisonRow:
    """Features of one recipe, pushed by one norm with one sign.

    Measures are means over the features unless said otherwise; None where they are not known or not
    finite.

    Attributes:
        recipe: Name of the recipe.
        times: Norm in multiples of R.
        sign: 1 or −1.
        seed: Random seed.
        effect: ‖Δ‖ on the prompts of the map.
        spread_effect: Root mean square of the change over prompts and tokens, which do not cancel
            there.
        explained: Explained amount 2αᵀb − αᵀKα of all features together (docs/method.md §2).
        novelty: Novelty of the replies.
        nll: Mean negative log-likelihood a token of the replies under the unsteered model, in nats.
        kl: KL(steered ‖ unsteered) of their first tokens, in nats.
        contrast: logit(A) − logit(B) of their first tokens.
        active: Share of features that are active.
        inert: Share of features that are inert.
        broken: Share of features that are broken.
        distinct: Number of different things that the active features say.
        passes: Passes of a direction through the slice that finding the features took.
        seconds: Time that it took.
    """

    recipe: str
    times: float
    sign: int
    seed: int
    effect: float | None
    spread_effect: float | None
    explained: float | None
    novelty: float | None
    nll: float | None
    kl: float | None
    contrast: float | None
    active: float | None
    inert: float | None
    broken: float | None
    distinct: float | None
    passes: float
    seconds: float

    def describe(self) -> dict[str, Any]:
        """All of it, JSON-able."""
        return asdict(self)


_CASE = ("recipe", "times", "sign", "seed")
_MEASURES = tuple(f.name for f in fields(ComparisonRow) if f.name not in _CASE)


@dataclass(frozen=True)
class SummaryRow:
    """Measures of one recipe, norm and sign over all seeds.

    Attributes:
        recipe: Name of the recipe.
        times: Norm in multiples of R.
        sign: 1 or −1.
        measures: Mean and standard deviation of each measure of `ComparisonRow` by its name. The
            deviation is None for a single seed, the pair is None where the measure is not known.
    """

    recipe: str
    times: float
    sign: int
    measures: Mapping[str, tuple[float, float | None] | None]

    def describe(self) -> dict[str, Any]:
        """One flat dict, JSON-able."""
        case = {"recipe": self.recipe, "times": self.times, "sign": self.sign}
        return {**case, **self.measures}


@dataclass(frozen=True, repr=False)
class Comparison(Shown):
    """Result of `melbo.compare`.

    Attributes:
        rows: A row for each recipe, norm, sign and seed; controls have the sign 1 only, as −v is as
            likely as v.
        completions: The replies; ``feature`` counts through the rows, m to each.
        settings: Arguments of the comparison (JSON-able).
    """

    rows: list[ComparisonRow]
    completions: Completions
    settings: dict[str, Any]

    @property
    def summary(self) -> list[SummaryRow]:
        """Means over seeds."""

        def case(row: ComparisonRow) -> tuple[str, float, int]:
            return row.recipe, row.times, row.sign

        def place(row: ComparisonRow) -> tuple[int, float, int, int]:
            return list(RECIPES).index(row.recipe), row.times, -row.sign, row.seed

        groups = [(key, list(rows)) for key, rows in groupby(sorted(self.rows, key=place), case)]
        return [
            SummaryRow(
                *key,
                {name: mean_and_deviation([getattr(r, name) for r in rows]) for name in _MEASURES},
            )
            for key, rows in groups
        ]

    @property
    def scale_text(self) -> str:
        """R in words, and R of adapters if they were compared with directions."""
        scales = dict.fromkeys(self.settings["scales"].values())
        return ", of adapters ".join(f"{scale:.3g}" for scale in scales)

    def plot(self) -> "Picture":
        """See `Shown.plot`; some measures of every recipe by norm, negative signs dotted."""
        return finished(_picture(self.summary, self.scale_text))

    def _table(self) -> Table:
        title = f"{len(self.settings['recipes'])} recipes compared, R = {self.scale_text}"
        return Table(title, *_cells(self.summary), ["Mean ± standard deviation over seeds."])

    def _records(self) -> Sequence[Record]:
        """Recipes at each norm, sign and seed."""
        return [row.describe() for row in self.rows]

    def describe(self) -> dict[str, Any]:
        """Everything but the completions, JSON-able."""
        return {
            "settings": self.settings,
            "summary": [row.describe() for row in self.summary],
            "rows": [row.describe() for row in self.rows],
        }

    @staticmethod
    def refuse_existing(folder: Path, force: bool) -> None:
        """Refuse a folder that holds a comparison or a run, before any work is done for it.

        Args:
            folder: Folder for the comparison.
            force: Whether files that are there already may be replaced.

        Raises:
            MelboError: The folder holds one and ``force`` is not set, or cannot be made.
        """
        refuse_existing(folder, force, _FILES, "a comparison or a run")

    def save(self, folder: str | Path) -> None:
        """Write the comparison into a folder.

        ``compare.json`` holds the numbers, ``compare.md`` a table of them, ``compare.png`` a
        picture, ``completions.jsonl`` the replies.

        Raises:
            MelboError: The files cannot be written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise MelboError(
                f"cannot make the folder {folder} ({err.strerror}): give another one"
            ) from err
        write_atomically(
            {
                folder / "compare.json": to_json(self.describe()),
                folder / "completions.jsonl": self.completions.to_jsonl(),
                folder / "compare.md": table(self.summary).encode(),
                folder / "compare.png": png(_picture(self.summary, self.scale_text)),
            }
        )


def table(summary: Sequence[SummaryRow]) -> str:
    """A table in Markdown; measures that no row has are left out."""
    return markdown(*_cells(summary))


def _cells(summary: Sequence[SummaryRow]) -> tuple[list[str], list[list[str]]]:
    """Headings and lines of a table; measures that no row has are left out."""
    shown = [name for name in _MEASURES if any(row.measures[name] for row in summary)]
    lines = [
        [
            row.recipe,
            f"{row.times:g}",
            "+" if row.sign > 0 else "−",
            *(plus_minus(row.measures[name]) for name in shown),
        ]
        for row in summary
    ]
    return ["recipe", "norm / R", "sign", *shown], lines


def _picture(summary: Sequence[SummaryRow], scale_text: str) -> "Picture":
    """Some measures of every recipe against the norm, negative signs dotted."""
    from melbo.display.picture import Picture

    canvas = Picture(figsize=(11, 6.4), layout="constrained")
    for axes, (measure, label) in zip(canvas.subplots(2, 3).flat, _PANELS.items(), strict=True):
        for number, name in enumerate(dict.fromkeys(row.recipe for row in summary)):
            _lines(axes, [row for row in summary if row.recipe == name], measure, number)
        axes.set(
            xlabel=f"norm / R  (R = {scale_text})",
            title=label,
            yscale="log" if measure in ("effect", "explained") else "linear",
        )
    return canvas


def _lines(axes: "Axes", rows: Sequence[SummaryRow], measure: str, number: int) -> None:
    """Draw a measure of the recipe of this number against the norm, a line for each sign."""
    from matplotlib import colormaps

    name = rows[0].recipe
    if is_control(name):
        colour = colormaps["Greys"](0.35 + 0.2 * (number % 3))
    else:
        colour = colormaps["tab10"](number)
    for sign, style in ((1, "-"), (-1, ":")):
        points = [
            (row.times, *known)
            for row in rows
            if row.sign == sign and (known := row.measures[measure]) is not None
        ]
        axes.errorbar(
            [times for times, _, _ in points],
            [mean for _, mean, _ in points],
            [deviation or 0.0 for _, _, deviation in points],
            color=colour,
            ls=style,
            marker="o",
            ms=3,
            lw=1.4,
            capsize=2,
            label=name if sign > 0 else None,
        )
