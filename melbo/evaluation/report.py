"""A run as one page: what each feature makes the model say, beside no feature and random ones."""

import math
import shlex
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import BaseLoader, ChainableUndefined, Environment, FunctionLoader

from melbo.evaluation.columns import columns as columns_of
from melbo.evaluation.columns import prompts_of, ranked_rows
from melbo.evaluation.curves import Curve, curves
from melbo.evaluation.fit_record import FitRecord
from melbo.evaluation.groups import groups
from melbo.evaluation.rank import has_ranking, load_ranking
from melbo.evaluation.scatter import Point, scatter
from melbo.evaluation.scores import NLL_WEIGHT, THRESHOLDS
from melbo.features.generate import Completion
from melbo.features.saved import load_features
from melbo.maths.geometry import spread
from melbo.records import write_atomically

_Json = dict[str, Any]

# no effect is larger unless it has overflowed
_LARGEST = 1e30


def report(folder: str | Path) -> Path:
    """Write ``report.html`` into a run folder, whether the run has been ranked or not.

    The page needs no other file.

    Returns:
        Path of the page.

    Raises:
        MelboError: There is no run in the folder, or it is truncated or of another version.
    """
    folder = Path(folder)
    features = load_features(folder)
    run = FitRecord.of(features.meta, len(features))
    ranked = _ranked(*load_ranking(folder), run.stability) if has_ranking(folder) else {}
    environment = templates(FunctionLoader(_template))
    environment.filters.update(num=_number, quote=lambda value: shlex.quote(str(value)))
    page = environment.get_template("report.html.j2").render(
        features=features,
        run=features.meta,
        folder=folder,
        nll_weight=NLL_WEIGHT,
        thresholds=THRESHOLDS,
        figures=figures(run, features.scale),
        spread=spread(features.V),
        stability=run.stability,
        **ranked,
    )
    write_atomically({folder / "report.html": page.encode()})
    return folder / "report.html"


def templates(loader: BaseLoader) -> Environment:
    """Templates of pages: every text is escaped, and what is missing is left out.

    Args:
        loader: Finds a template by its name.
    """
    return Environment(
        loader=loader,
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _template(name: str) -> str:
    return files("melbo.evaluation").joinpath(name).read_text(encoding="utf-8")


def _ranked(
    ranking: _Json, completions: Sequence[Completion], stability: _Json | None
) -> dict[str, Any]:
    """Variables of the template that show a ranking.

    Args:
        ranking: The ranking, as JSON.
        completions: Its completions.
        stability: See `FitRecord`.

    Returns:
        ``prompts`` (held-out ones first), ``columns``, a row for each vector, the replies of the
        unsteered model, groups of features that say the same, and effects as a picture.
    """
    prompts = prompts_of(ranking)
    texts = {(c.kind, c.feature, c.prompt): c.text for c in completions}

    def said(kind: str, index: int | None) -> list[str]:
        return [texts.get((kind, index, prompt), "").strip() for prompt, _, _ in prompts]

    active = {row["index"] for row in ranking["features"] if row["flag"] == "active"}
    alike = groups([c for c in completions if c.kind == "feature" and c.feature in active])
    group_of = {("feature", i): n for n, one in enumerate(alike, 1) for i in one.features}

    columns, rows = columns_of(ranking, stability), ranked_rows(ranking, stability)
    cells = [_cells(c.values(rows), 2 if c.split else None) for c in columns]
    return {
        "ranking": ranking,
        "prompts": prompts,
        "columns": columns,
        "rows": [
            {
                **row,
                "cells": line,
                "said": said(row["kind"], row["index"]),
                "group": group_of.get((row["kind"], row["index"]), ""),
            }
            for row, line in zip(rows, zip(*cells, strict=True), strict=True)
        ],
        "unsteered": said("unsteered", None),
        "groups": [{**vars(one), "example": said("feature", one.features[0])[0]} for one in alike],
        "effects": _effects(rows),
    }


def _effects(rows: Sequence[_Json]) -> _Json:
    """Effects of vectors beside the fluency of their replies, as a picture.

    Args:
        rows: Rows of the ranking.

    Returns:
        ``picture``, and how many rows are not on it (``left_out``).
    """
    points = [
        Point(
            kind="random" if row["kind"] == "control" else row["flag"],
            name=f"{'random' if row['kind'] == 'control' else 'feature'} {row['index']}: "
            f"‖Δ‖ {_number(row['effect'])}, NLL {_number(row['held_out']['nll'])}",
            link=f"{'random' if row['kind'] == 'control' else 'feature'}-{row['index']}",
            x=row["effect"],
            y=row["held_out"]["nll"],
        )
        for row in rows
        # an effect that overflowed is kept as the largest number there is
        if row["effect"] < _LARGEST
    ]
    title = f"NLL of held-out replies over effect, {len(points)} vectors"
    ylabel = "NLL, nats a token (fluent at the top)"
    picture = scatter(title, "effect ‖Δ‖", ylabel, points)
    return {"picture": picture, "left_out": len(rows) - len(points)}


def _cells(values: Sequence[float | None], decimals: int | None) -> list[tuple[float | None, str]]:
    """Values of a column, each with its text.

    Args:
        values: The values.
        decimals: Decimals of all; None for as many as give the largest value three digits.
    """
    if decimals is None:
        largest = max((abs(v) for v in values if v), default=1.0)
        decimals = min(6, max(0, 2 - math.floor(math.log10(largest))))
    return [(v, "" if v is None else f"{v:.{decimals}f}".replace("-", "−")) for v in values]


def _number(value: float) -> str:
    """Three digits, or all that stand before the point."""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", "−").replace("inf", "∞")


def figures(run: FitRecord, scale: float) -> dict[str, Any]:
    """Pictures of the curves that a run has kept, by name: ``calibration`` and ``training``.

    Args:
        run: Record of the fit.
        scale: R, which is marked.
    """
    drawn = {}
    if run.calibration:
        norms, ratios = zip(*sorted(run.calibration["curve"]), strict=True)
        wanted = run.calibration["nonlinearity"]
        title = (
            f"Non-linear over linear part, {ratios[0]:.2g} at R = {norms[0]:.3g} "
            f"to {ratios[-1]:.2g} at R = {norms[-1]:.3g}"
        )
        curve = Curve("non-linear ÷ linear part", ratios, wanted, f"λ = {wanted:g}")
        xlabel = "R, norm of what is added (log scale)"
        drawn["calibration"] = curves(title, xlabel, norms, [curve], at=scale)
    if run.history:
        explained, objective = (
            [record[key] for record in run.history] for key in ("explained", "objective")
        )
        sweeps = len(run.history)
        title = (
            f"Explained amount, {explained[0]:.3g} at sweep 1 "
            f"to {explained[-1]:.3g} at sweep {sweeps}, and objective"
        )
        panels = [
            Curve("explained amount", explained, run.explained, "features kept"),
            Curve("objective", objective),
        ]
        drawn["training"] = curves(title, "sweep", range(1, sweeps + 1), panels)
    return drawn
