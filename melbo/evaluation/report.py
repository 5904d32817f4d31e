"""A run as one page: what each feature makes the model say, beside no feature and random ones."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

from jinja2 import BaseLoader, ChainableUndefined, Environment, FunctionLoader

from melbo.evaluation.curves import Curve, curves
from melbo.evaluation.rank import has_ranking, load_ranking
from melbo.evaluation.scores import NLL_WEIGHT, THRESHOLDS
from melbo.features.generate import Completion
from melbo.features.saved import load_features
from melbo.maths.geometry import spread
from melbo.records import write_atomically

_Json = dict[str, Any]


@dataclass(frozen=True)
class _Score:
    """A score on a set of prompts.

    Attributes:
        name: Short name.
        hint: Explanation in a line.
        first: Values that come first when one sorts by it.
    """

    name: str
    hint: str
    first: Literal["high", "low"]


_SCORES = {
    "novel": _Score("novel yet fluent", f"novelty less {NLL_WEIGHT:g} × NLL", "high"),
    "novelty": _Score("novelty", "1 − tf-idf cosine with the unsteered reply", "high"),
    "nll": _Score("NLL", "negative log-likelihood under the unsteered model, nats a token", "low"),
    "repetition": _Score(
        "repet.", "repetition: share of the reply’s 4-grams that repeat earlier ones", "low"
    ),
    "kl": _Score("KL", "KL(steered ‖ unsteered) of the first token of the reply, nats", "high"),
    "contrast": _Score("contrast", "logit(A) − logit(B) of the first token of the reply", "high"),
}


@dataclass(frozen=True)
class _Column:
    """A column of numbers.

    Attributes:
        group: Heading over it and its neighbours.
        score: The score that it shows.
        split: Part of a row of the ranking that holds its value; None for the row itself.
        key: Key of the value there.
        name: Heading.
    """

    group: str
    score: _Score
    split: str | None
    key: str
    name: str

    def values(self, rows: Sequence[_Json]) -> list[float | None]:
        """Value of each row of the ranking."""
        return [row[self.split][self.key] if self.split else row[self.key] for row in rows]


@dataclass(frozen=True)
class _Run:
    """Parts of a run's ``run.json`` that are drawn or counted with; templates show the rest.

    Attributes:
        calibration: Result of `melbo.calibrate`, if there is one.
        history: Sweeps of the fit.
        explained: Explained amount of the features that were kept.
        stability: Result of `melbo.fit_seeds`, where it is of these very features and not of a set
            that they are taken from.
    """

    calibration: _Json | None
    history: list[_Json]
    explained: float | None
    stability: _Json | None

    @classmethod
    def of(cls, meta: Mapping[str, Any], num: int) -> Self:
        """Read the ``meta`` of a set of ``num`` features."""
        fit, stability = meta.get("fit", {}), meta.get("stability")
        return cls(
            calibration=meta.get("calibration"),
            history=fit.get("history") or [],
            explained=fit.get("stats", {}).get("explained"),
            stability=stability if stability and len(stability["cosine"]) == num else None,
        )


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
    run = _Run.of(features.meta, len(features))
    ranked = _ranked(*load_ranking(folder), run.stability) if has_ranking(folder) else {}
    environment = templates(FunctionLoader(_template))
    environment.filters.update(num=_number, quote=lambda value: shlex.quote(str(value)))
    page = environment.get_template("report.html.j2").render(
        features=features,
        run=features.meta,
        folder=folder,
        nll_weight=NLL_WEIGHT,
        thresholds=THRESHOLDS,
        figures=_figures(run, features.scale),
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
        stability: See `_Run`.

    Returns:
        ``prompts`` (held-out ones first), ``columns``, a row for each vector, and the replies of
        the unsteered model.
    """
    validation, held_out = (
        ranking["settings"][split]["texts"] for split in ("validation", "held_out")
    )
    prompts = [
        *((len(validation) + i, text, "held-out") for i, text in enumerate(held_out)),
        *((i, text, "validation") for i, text in enumerate(validation)),
    ]
    texts = {(c.kind, c.feature, c.prompt): c.text for c in completions}

    def said(kind: str, index: int | None) -> list[str]:
        return [texts.get((kind, index, prompt), "") for prompt, _, _ in prompts]

    columns, rows = _columns(ranking, stability), _rows(ranking, stability)
    cells = [_cells(c.values(rows), 2 if c.split else None) for c in columns]
    return {
        "ranking": ranking,
        "prompts": prompts,
        "columns": columns,
        "rows": [
            {**row, "cells": line, "said": said(row["kind"], row["index"])}
            for row, line in zip(rows, zip(*cells, strict=True), strict=True)
        ],
        "unsteered": said("unsteered", None),
    }


def _rows(ranking: _Json, stability: _Json | None) -> list[_Json]:
    """Rows of the ranking, with the cosines of other seeds where they are known."""
    rows: list[_Json] = ranking["features"] + ranking["controls"]
    if stability is None:
        return rows
    cosines = [
        stability["cosine"][row["index"]] if row["kind"] == "feature" else None for row in rows
    ]
    return [{**row, "seeds": {"cosine": c}} for row, c in zip(rows, cosines, strict=True)]


def _columns(ranking: _Json, stability: _Json | None) -> list[_Column]:
    """The columns of numbers."""
    by = ranking["by"] if ranking["by"] in _SCORES else "novel"
    group = f"score: {_SCORES[by].name}"
    columns = [
        _Column(group, _SCORES[by], "validation", by, "validation"),
        _Column(group, _SCORES[by], "held_out", by, "held-out"),
    ]
    known = ranking["controls"][0]["held_out"]
    columns += [
        _Column("on held-out prompts", score, "held_out", key, score.name)
        for key, score in _SCORES.items()
        if key not in ("novel", by) and known[key] is not None
    ]
    if stability:
        hint = (
            "best cosine among the features of another seed, mean over the other seeds; "
            f"random directions {stability['baseline']:.2f}"
        )
        again = _Score("found again", hint, "high")
        group = f"over {stability['seeds']} seeds"
        columns.append(_Column(group, again, "seeds", "cosine", again.name))
    alpha = _Score("α", "strength of the factor in the transcoder", "high")
    effect = _Score("‖Δ‖", "how far the target layer moves", "high")
    group = "on the fit’s prompts"
    columns.append(_Column(group, alpha, None, "alpha", alpha.name))
    columns.append(_Column(group, effect, None, "effect", effect.name))
    return columns


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


def _figures(run: _Run, scale: float) -> dict[str, Any]:
    """Pictures of the curves that the run has kept, by name."""
    figures = {}
    if run.calibration:
        norms, ratios = zip(*sorted(run.calibration["curve"]), strict=True)
        wanted = run.calibration["nonlinearity"]
        title = (
            f"Non-linear over linear part, {ratios[0]:.2g} at R = {norms[0]:.3g} "
            f"to {ratios[-1]:.2g} at R = {norms[-1]:.3g}"
        )
        curve = Curve("non-linear ÷ linear part", ratios, wanted, f"λ = {wanted:g}")
        xlabel = "R, norm of what is added (log scale)"
        figures["calibration"] = curves(title, xlabel, norms, [curve], at=scale)
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
        figures["training"] = curves(title, "sweep", range(1, sweeps + 1), panels)
    return figures
