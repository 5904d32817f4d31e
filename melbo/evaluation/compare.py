"""Ways to find features, side by side: the same prompts and layers, the same norms, both signs, and what nobody has to learn beside them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from melbo.discovery.recipes import RECIPES, FeatureSearch, adapters_like
from melbo.errors import MelboError
from melbo.evaluation.plot import png
from melbo.evaluation.scores import Judged
from melbo.evaluation.tables import markdown, plus_minus
from melbo.features.directions import FeatureSet
from melbo.features.generate import Completions, first_tokens, generate
from melbo.features.run_folder import refuse_existing
from melbo.features.steerable import Mixed
from melbo.maps.residual import CausalMap
from melbo.maths.statistics import mean, mean_and_deviation
from melbo.maths.transcoder import exponential_factors
from melbo.models.prompts import Prompts
from melbo.progress import track
from melbo.records import to_json, write_atomically

#: What is compared unless told otherwise.
USUAL = tuple(
    name
    for name, recipe in RECIPES.items()
    if name not in ("soft", "projected", "quadratic", "columns") and not recipe.adapters
)
_MEASURES = (
    "effect",
    "spread_effect",
    "explained",
    "novelty",
    "nll",
    "kl",
    "contrast",
    "active",
    "inert",
    "broken",
    "distinct",
    "passes",
    "seconds",
)


@dataclass(frozen=True)
class Comparison:
    """What `compare` finds.

    Attributes:
        rows: One for each way, norm, sign (controls have one, −v being as likely as v) and seed: means over its vectors of ``effect`` ‖Δ‖,
            ``spread_effect`` (root mean square of the change over prompts and tokens, which do not cancel there), ``novelty``, ``nll``, ``kl``,
            ``contrast``; shares ``active``, ``inert``, ``broken``; of all of them together ``explained`` (bᵀK⁻¹b), ``distinct`` (different things
            that the active ones say); and what finding them cost.
        completions: Everything that was said; ``feature`` counts through the rows, m to each.
        settings: How it was made (JSON-able).
    """

    rows: list[dict[str, Any]]
    completions: Completions
    settings: dict[str, Any]

    @property
    def summary(self) -> list[dict[str, Any]]:
        """Mean and standard deviation over seeds of every measure, ``[mean, deviation]``; deviation None where there is a single seed."""

        def case(row: dict[str, Any]) -> tuple:
            return row["recipe"], row["times"], row["sign"]

        return [
            {
                "recipe": recipe,
                "times": times,
                "sign": sign,
                **{k: mean_and_deviation([row[k] for row in rows]) for k in _MEASURES},
            }
            for (recipe, times, sign), rows in (
                (key, list(group))
                for key, group in groupby(sorted(self.rows, key=_place), key=case)
            )
        ]

    def describe(self) -> dict[str, Any]:
        """Everything but the completions, JSON-able."""
        return {"settings": self.settings, "summary": self.summary, "rows": self.rows}

    @staticmethod
    def refuse_existing(folder: Path, force: bool) -> None:
        """Refuse to replace what `save` has written before, without being told to.

        Raises:
            MelboError: There is a comparison in ``folder`` and ``force`` is not set.
        """
        refuse_existing(
            folder,
            force,
            ("compare.json", "compare.md", "compare.png", "completions.jsonl", "run.json"),
        )

    def save(self, folder: str | Path) -> None:
        """Write ``compare.json``, ``completions.jsonl``, ``compare.md`` (the table) and ``compare.png`` (the picture) into a folder.

        Raises:
            MelboError: They cannot be written.
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
                folder / "compare.png": _picture(self.summary, self.settings["scales"]),
            }
        )


def compare(
    cmap: CausalMap,
    held_out: Prompts,
    scale: float | None = None,
    *,
    recipes: Sequence[str] = USUAL,
    num_factors: int = 32,
    times: Sequence[float] = (0.5, 1.0, 1.5, 2.0),
    seeds: int = 3,
    steps: int = 12,
    contrast: tuple[str, str] | None = None,
    max_new_tokens: int = 12,
    progress: bool = True,
) -> Comparison:
    """Find features in each way, push along each by the same norms and both signs, and tell what happens.

    Args:
        cmap: Δ, averaged; its stacked form is made from it. ``effect``, ``spread_effect`` and ``explained`` are measured on its prompts.
        held_out: Prompts that are replied to; none of them among the map's.
        scale: R of directions; calibrated if left out. That of adapters, the norm of an edit, always is.
        ways: Some of `WAYS`.
        num_factors: m, features of each.
        times: The norms, in multiples of R. Ways that learn at a norm are fitted at each.
        seeds: How many times what is random is done anew.
        steps: Of MELBO; its learning rate is set so that they lead about as far as 300 steps of the published size.
        contrast: Two strings whose first tokens' logits are compared.
        max_new_tokens: Length of a reply at most.
        progress: Draw bars.

    Raises:
        MelboError: An unknown way, a norm or count that makes no sense, a concatenated map, or prompts that the map has seen.
    """
    _check(cmap, held_out, scale, recipes, num_factors, times, seeds, steps)
    times, lm = tuple(dict.fromkeys(times)), cmap.lm
    recipes = sorted(
        dict.fromkeys(recipes), key=lambda name: RECIPES[name].adapters
    )  # in the order of the kinds in the bank of all
    pair = first_tokens(lm, contrast) if contrast is not None else None
    kinds = {
        kind: _Kind(adapters_like(cmap) if kind else cmap, None if kind else scale, progress)
        for kind in sorted({RECIPES[n].adapters for n in recipes})
    }
    rows: list[dict[str, Any]] = []
    learn = [
        (name, seed) for name in recipes for seed in range(seeds if RECIPES[name].seeded else 1)
    ]
    with track(
        sum(len(times) if RECIPES[name].of_norm else 1 for name, _ in learn), "directions", progress
    ) as bar:
        for name, seed in learn:
            kept, recipe = None, RECIPES[name]
            kind = kinds[recipe.adapters]
            for x in times:
                if kept is None or recipe.of_norm:
                    kept = kind.find(name, num_factors, x * kind.scale, steps, seed)
                    bar.update()
                V, cost = kept
                for sign in (
                    (1, -1) if recipe.method is not None else (1,)
                ):  # −v of a control is as likely as v
                    rows.append({"recipe": name, "times": x, "sign": sign, "seed": seed, **cost})
                    kind.take(sign, V, x)
    features, strengths = (
        Mixed([kind.features for kind in kinds.values()]),
        torch.cat([s for kind in kinds.values() for s in kind.strengths]),
    )
    completions = generate(
        lm,
        held_out,
        features,
        strength=strengths,
        max_new_tokens=max_new_tokens,
        contrast=pair,
        progress=progress,
    )
    judged = Judged(lm, held_out, completions, progress)
    responses = [found for kind in kinds.values() for found in kind.responses(progress)]
    for i, (row, (V, D)) in enumerate(zip(rows, responses, strict=True)):
        row |= _measures(V, D, judged, range(i * num_factors, (i + 1) * num_factors), len(held_out))
    settings = {
        "scales": {name: kinds[RECIPES[name].adapters].scale for name in recipes},
        "times": list(times),
        "num_factors": num_factors,
        "seeds": seeds,
        "steps": steps,
        "max_new_tokens": max_new_tokens,
        "contrast": list(contrast) if contrast else None,
        "recipes": {name: RECIPES[name].what for name in recipes},
        "held_out": held_out.describe(),
        "map": cmap.describe(),
    }
    return Comparison(rows, completions, settings)


def table(summary: Sequence[dict[str, Any]]) -> str:
    """The summary as a table in Markdown."""
    shown = [k for k in _MEASURES if any(row[k] is not None for row in summary)]
    lines = [
        [
            row["recipe"],
            f"{row['times']:g}",
            "+" if row["sign"] > 0 else "−",
            *(plus_minus(row[k]) for k in shown),
        ]
        for row in summary
    ]
    return markdown(["recipe", "norm / R", "sign", *shown], lines)


def text_of(scales: dict[str, float]) -> str:
    """R, and that of adapters if both were compared."""
    return ", of adapters ".join(f"{scale:.3g}" for scale in dict.fromkeys(scales.values()))


class _Kind(FeatureSearch):
    """Directions, or adapters: where they are looked for, and all that were found of them."""

    def __init__(self, cmap: CausalMap, scale: float | None, progress: bool) -> None:
        super().__init__(cmap, scale, progress)
        self.found: list[
            Tensor
        ] = []  # [m, d_source] for each row of the table, unit rows with the sign in them
        self.strengths: list[Tensor] = []  # [m] for each, norms

    def take(self, sign: int, V: Tensor, times: float) -> None:
        """A row of the table: V pushed with this sign by so many times the scale."""
        self.found.append(V if sign > 0 else self.map.opposite(V))
        self.strengths.append(torch.full((len(V),), times * self.scale))

    @property
    def features(self) -> FeatureSet:
        """All of them as one set of scale 1."""
        return self.feature_set(torch.cat(self.found), 1.0)

    def responses(self, progress: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each row its V ``[m, d_source]`` and the change at every prompt and token, ``[m, prompts · tokens, d]``, on the CPU."""
        with track(len(self.found), "effects", progress) as bar:
            for V, strengths in zip(self.found, self.strengths, strict=True):
                yield (
                    V,
                    self.stacked.value(strengths[:, None] * V)
                    .cpu()
                    .unflatten(-1, (-1, self.map.d_target)),
                )
                bar.update()


def _measures(V: Tensor, D: Tensor, judged: Judged, at: range, prompts: int) -> dict[str, Any]:
    """Of the features ``at`` of the table."""
    averaged = D.mean(1)  # [m, d]
    scores = [judged.scores("feature", i, range(prompts)) for i in at]
    explained = exponential_factors(V, averaged).explained
    measured = {
        "effect": averaged.norm(dim=-1).mean().item(),
        "spread_effect": D.square().sum(-1).mean(1).sqrt().mean().item(),
        "explained": explained,
        **{name: mean([getattr(s, name) for s in scores]) for name in ("novelty", "nll", "kl")},
        "contrast": mean([s.contrast for s in scores if s.contrast is not None])
        if scores[0].contrast is not None
        else None,
        **{
            name: mean([float(s.flag == name) for s in scores])
            for name in ("active", "inert", "broken")
        },
        "distinct": judged.distinct(
            [i for i, s in zip(at, scores, strict=True) if s.flag == "active"], range(prompts)
        ),
    }
    return {k: v if v is not None and abs(v) < float("inf") else None for k, v in measured.items()}


def _place(row: dict[str, Any]) -> tuple:
    return list(RECIPES).index(row["recipe"]), row["times"], -row["sign"], row["seed"]


def _check(
    cmap: CausalMap,
    held_out: Prompts,
    scale: float | None,
    recipes: Sequence[str],
    num_factors: int,
    times: Sequence[float],
    seeds: int,
    steps: int,
) -> None:
    if type(cmap) is not CausalMap:
        raise MelboError(
            f"got a {type(cmap).__name__}: compare takes a map of directions, and makes that of adapters from it"
        )
    if num_factors < 1 or (scale is not None and not (isfinite(scale) and scale > 0)):
        raise MelboError(
            f"got num_factors={num_factors} and scale={scale}: expected at least 1, and a positive number"
        )
    unknown = [name for name in recipes if name not in RECIPES]
    if unknown or not recipes:
        raise MelboError(
            f"no way {', '.join(unknown) or 'given'}: expected some of {', '.join(RECIPES)}"
        )
    if seeds < 1 or steps < 1 or not times or not all(isfinite(x) and x > 0 for x in times):
        raise MelboError(
            f"got seeds={seeds}, steps={steps}, times={tuple(times)}: expected at least 1 and 1, and one positive norm or more"
        )
    if cmap.concatenate:
        raise MelboError(
            "got a concatenated map: compare takes the averaged one, and makes the other from it"
        )
    for text, tokens in zip(held_out.texts, held_out.tokens, strict=True):
        if tokens in cmap.prompts.tokens:
            raise MelboError(
                f"the held-out prompt {text!r} is one of the map's: scores on it would flatter; give another"
            )


def _picture(summary: Sequence[dict[str, Any]], scales: dict[str, float]) -> bytes:
    """Every way's measures against the norm, both signs."""
    from matplotlib import colormaps, figure

    panels = {
        "effect": "‖Δ‖ on the fit's prompts",
        "novelty": "novelty of the reply",
        "kl": "KL of its first token, nats",
    }
    panels |= {
        "broken": "share broken",
        "distinct": "distinct replies among active",
        "explained": "explained, bᵀK⁻¹b",
    }
    names = list(dict.fromkeys(row["recipe"] for row in summary))
    canvas = figure.Figure(figsize=(11, 6.4), layout="constrained")
    for axes, (key, label) in zip(canvas.subplots(2, 3).flat, panels.items(), strict=True):
        for n, name in enumerate(names):
            grey = RECIPES[name].method is None
            colour = colormaps["Greys"](0.35 + 0.2 * (n % 3)) if grey else colormaps["tab10"](n)
            for sign, line in ((1, "-"), (-1, ":")):
                rows = [
                    row
                    for row in summary
                    if row["recipe"] == name and row["sign"] == sign and row[key] is not None
                ]
                x, y = [row["times"] for row in rows], [row[key][0] for row in rows]
                bars = [row[key][1] or 0.0 for row in rows]
                axes.errorbar(
                    x,
                    y,
                    bars,
                    color=colour,
                    ls=line,
                    marker="o",
                    ms=3,
                    lw=1.4,
                    capsize=2,
                    label=name if sign > 0 else None,
                )
        axes.set(
            xlabel=f"norm / R  (R = {text_of(scales)})",
            title=label,
            yscale="log" if key in ("effect", "explained") else "linear",
        )
    return png(canvas)
