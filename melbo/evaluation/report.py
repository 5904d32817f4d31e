"""One page a run: what each feature makes the model say, beside the unsteered model and beside random directions."""

import io
import math
import re
import shlex
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment
from markupsafe import Markup

from melbo.evaluation import scores as score
from melbo.evaluation.rank import load_ranking
from melbo.features.directions import FeatureSet
from melbo.features.saved import load_features
from melbo.maths.geometry import spread
from melbo.records import write_atomically

#: Scores on a set of prompts: short name, what it is, which values come first when one sorts by it.
_SCORES = {
    "novel": ("novel yet fluent", f"novelty less {score.NLL_WEIGHT:g} × NLL", "high"),
    "novelty": ("novelty", "1 − tf-idf cosine with the unsteered reply", "high"),
    "nll": ("NLL", "negative log-likelihood under the unsteered model, nats a token", "low"),
    "repetition": (
        "repet.",
        "repetition: share of the reply’s 4-grams that it has said before",
        "low",
    ),
    "kl": ("KL", "KL(steered ‖ unsteered) of the first token of the reply, nats", "high"),
    "contrast": ("contrast", "logit(A) − logit(B) of the first token of the reply", "high"),
}
#: Stand-ins for colours while a figure is drawn, and what the page puts there, so that it follows the reader's light or dark mode.
_COLOURS = {"#000001": "currentColor", "#000002": "var(--accent)", "#000003": "var(--muted)"}
_INK, _ACCENT, _MUTED = _COLOURS
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_STYLE |= dict.fromkeys(
    ("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "text.color"), _INK
)


def report(folder: str | Path) -> Path:
    """Write ``report.html`` into a run folder: one page that needs nothing else, whether the run has been ranked or not.

    Raises:
        MelboError: No run there, a truncated or foreign one.
    """
    folder = Path(folder)
    features = load_features(folder)
    ranked = all((folder / name).is_file() for name in ("ranking.json", "completions.jsonl"))
    stability = _stability(features)
    table = _table(*load_ranking(folder), stability) if ranked else {}
    environment = Environment(
        autoescape=True, undefined=ChainableUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(num=_number, quote=lambda value: shlex.quote(str(value)))
    template = environment.from_string(
        files("melbo").joinpath("report.html.j2").read_text(encoding="utf-8")
    )
    sets = {"spread": spread(features.V), "stability": stability}
    page = template.render(
        features=features,
        run=features.meta,
        folder=folder,
        score=score,
        figures=_figures(features),
        **sets,
        **table,
    )
    write_atomically({folder / "report.html": page.encode()})
    return folder / "report.html"


def _stability(features: FeatureSet) -> dict[str, Any] | None:
    """How well other seeds found the features again, where that was measured on this very set and not on one that it is taken from."""
    kept = features.meta.get("stability")
    return kept if kept and len(kept["cosine"]) == len(features) else None


def _table(
    ranking: dict[str, Any], completions: Sequence[Any], stability: dict[str, Any] | None
) -> dict[str, Any]:
    """The ranking, and ready to lay out: prompts (held-out ones first), columns, a row a vector, the unsteered replies."""
    validation, held_out = (
        ranking["settings"][split]["texts"] for split in ("validation", "held_out")
    )
    prompts = [(len(validation) + i, t, "held-out") for i, t in enumerate(held_out)] + [
        (i, t, "validation") for i, t in enumerate(validation)
    ]
    texts = {(c.kind, c.feature, c.prompt): c.text for c in completions}

    def said(kind: str, index: int | None) -> list[str]:
        return [texts.get((kind, index, prompt), "") for prompt, _, _ in prompts]

    columns = _columns(ranking, stability)
    rows = ranking["features"] + ranking["controls"]
    if stability:
        rows = [
            {
                **r,
                "seeds": {
                    "cosine": stability["cosine"][r["index"]] if r["kind"] == "feature" else None
                },
            }
            for r in rows
        ]
    cells = [
        _texts([r[split][key] if split else r[key] for r in rows], split is not None)
        for *_, split, key in columns
    ]
    rows = [
        {**r, "cells": c, "said": said(r["kind"], r["index"])}
        for r, c in zip(rows, zip(*cells, strict=True), strict=True)
    ]
    return {
        "ranking": ranking,
        "prompts": prompts,
        "columns": columns,
        "rows": rows,
        "unsteered": said("unsteered", None),
    }


def _columns(
    ranking: dict[str, Any], stability: dict[str, Any] | None
) -> list[tuple[str, str, str, str, str | None, str]]:
    """Of each column of numbers: group, name, what it is, which values come first, and its split and key in the rows."""
    by = ranking["by"] if ranking["by"] in _SCORES else "novel"
    name, hint, first = _SCORES[by]
    known = [
        k
        for k in _SCORES
        if k not in ("novel", by) and ranking["controls"][0]["held_out"][k] is not None
    ]
    seeds = []
    if stability:
        what = f"best cosine among the features of another seed, mean over the other seeds; random directions {stability['baseline']:.2f}"
        seeds = [
            (f"over {stability['seeds']} seeds", "found again", what, "high", "seeds", "cosine")
        ]
    return [
        (f"score: {name}", "validation", hint, first, "validation", by),
        (f"score: {name}", "held-out", hint, first, "held_out", by),
        *(("on held-out prompts", *_SCORES[k], "held_out", k) for k in known),
        *seeds,
        (
            "on the fit’s prompts",
            "α",
            "strength of the factor in the transcoder",
            "high",
            None,
            "alpha",
        ),
        ("on the fit’s prompts", "‖Δ‖", "how far the target layer moves", "high", None, "effect"),
    ]


def _texts(values: Sequence[float | None], scores: bool) -> list[tuple[float | None, str]]:
    """A column's values, each with its text: scores to two decimals, the rest to as many for all as give the largest three digits."""
    largest = max((abs(v) for v in values if v), default=1.0)
    decimals = 2 if scores else min(6, max(0, 2 - math.floor(math.log10(largest))))
    return [(v, "" if v is None else f"{v:.{decimals}f}".replace("-", "−")) for v in values]


def _number(value: float) -> str:
    """Three digits, or all that stand before the point."""
    return (
        (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}")
        .replace("-", "−")
        .replace("inf", "∞")
    )


def _figures(features: FeatureSet) -> dict[str, Markup]:
    """The curves that the run has kept."""
    figures = {}
    if calibration := features.meta.get("calibration"):
        norms, ratios = ([point[i] for point in sorted(calibration["curve"])] for i in (0, 1))
        lines = {
            "non-linear ÷ linear part": (
                ratios,
                calibration["nonlinearity"],
                f"λ = {calibration['nonlinearity']:g}",
            )
        }
        title = f"Non-linear over linear part, {ratios[0]:.2g} at R = {norms[0]:.3g} to {ratios[-1]:.2g} at R = {norms[-1]:.3g}"
        figures["calibration"] = _draw(
            title, "R, norm of what is added (log scale)", norms, lines, features.scale
        )
    if history := features.meta.get("fit", {}).get("history"):
        explained, objective = (
            [record[key] for record in history] for key in ("explained", "objective")
        )
        lines = {
            "explained amount": (
                explained,
                features.meta["fit"]["stats"]["explained"],
                "features kept",
            ),
            "objective": (objective, None, ""),
        }
        title = f"Explained amount, {explained[0]:.3g} at sweep 1 to {explained[-1]:.3g} at sweep {len(history)}, and objective"
        figures["training"] = _draw(title, "sweep", range(1, len(history) + 1), lines)
    return figures


def _draw(
    title: str, xlabel: str, x: Sequence[float], lines: dict[str, tuple], at: float | None = None
) -> Markup:
    """Curves over the same x, one above the other, each with a level to compare it with; ``at`` marks an R on a logarithmic axis."""
    from matplotlib import figure, rc_context, ticker

    dashed: dict[str, Any] = {"color": _MUTED, "lw": 0.8, "ls": (0, (4, 3))}
    with rc_context(
        {**_STYLE, "svg.hashsalt": title}
    ):  # ids that are the same every time and in no other figure
        canvas = figure.Figure(figsize=(4.8, 3), layout="constrained")
        panels = canvas.subplots(len(lines), squeeze=False, sharex=True)[:, 0]
        for axes, (label, (y, level, text)) in zip(panels, lines.items(), strict=True):
            axes.plot(x, y, "o-", color=_ACCENT, ms=3, lw=1.5)
            axes.set(
                ylabel=label, ylim=(min(0, *y), None), xscale="linear" if at is None else "log"
            )
            axes.yaxis.set_major_formatter("{x:,g}")
            if level is not None:
                axes.axhline(level, **dashed)
                axes.annotate(
                    text, (1, level), (0, 3), ("axes fraction", "data"), "offset points", ha="right"
                )
            if at is not None:
                axes.axvline(at, **dashed)
                axes.annotate(
                    f"R = {at:.3g}",
                    (at, 1),
                    (-4, -8),
                    ("data", "axes fraction"),
                    "offset points",
                    ha="right",
                )
        axes.set_xlabel(xlabel)
        axes.xaxis.set_major_locator(
            ticker.MaxNLocator(integer=True) if at is None else ticker.LogLocator(subs=(1, 2, 5))
        )
        axes.minorticks_off()
        axes.xaxis.set_major_formatter("{x:g}")
        canvas.savefig(out := io.StringIO(), format="svg", transparent=True)
    return _inline(out.getvalue(), title)


def _inline(svg: str, title: str) -> Markup:
    """An SVG file as a part of the page: no header, no metadata, colours of the page, a text alternative."""
    svg = re.sub(
        r'<metadata>.*?</metadata>| id="[\w.]+_\d+"', "", svg[svg.index("<svg") :], flags=re.DOTALL
    )
    for stand_in, colour in _COLOURS.items():
        svg = svg.replace(stand_in, colour)
    box = svg.split('viewBox="')[1].split('"')[0]
    return Markup('<svg role="img" aria-label="{0}" viewBox="{1}"><title>{0}</title>').format(
        title, box
    ) + Markup(svg[svg.index(">") + 1 :])
