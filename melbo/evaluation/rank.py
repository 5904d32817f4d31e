"""Order features by what they do, on prompts they were not fitted on, beside random vectors taken through the same."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from melbo.errors import MelboError
from melbo.evaluation.scores import Flag, Judged, Scores
from melbo.features.directions import FeatureSet
from melbo.features.generate import Completion, Completions, first_tokens, generate
from melbo.maps.described import map_from_description
from melbo.maths.statistics import mean
from melbo.models.language_model import LanguageModel
from melbo.models.prompts import Prompts
from melbo.records import to_json, write_atomically

_CONTROL_STREAM = 0x6D656C626F  # added to the seed

#: Orders, and what each goes by.
ORDERS = {
    "novel": "novel yet fluent: says something other than the unsteered model, in words the unsteered model finds sayable",
    "alpha": "α², the strength of the factor in the transcoder",
    "effect": "‖Δ_R(v)‖, how far the target layer moves",
    "contrast": "logit(A) − logit(B) of the first token of the reply",
    "kl": "KL(steered ‖ unsteered) of the first token of the reply",
}


@dataclass(frozen=True)
class Ranked:
    """One vector in a ranking.

    Attributes:
        index: Its place in its set.
        kind: ``"feature"`` or ``"control"``.
        alpha: Its strength (None for a control).
        effect: ‖Δ_R(v)‖ on the prompts of the fit.
        validation: Its scores on the prompts the order is chosen on.
        held_out: Its scores on the prompts that are reported.
    """

    index: int
    kind: str
    alpha: float | None
    effect: float
    validation: Scores
    held_out: Scores

    @property
    def flag(self) -> Flag:
        """``"active"``, ``"inert"`` or ``"broken"`` on held-out prompts; the order goes by the flag on validation prompts."""
        return self.held_out.flag

    def score(self, by: str, split: str) -> float:
        """Its value in an order (see `ORDERS`) on ``"validation"`` or ``"held_out"`` prompts."""
        if by == "alpha":
            return 0.0 if self.alpha is None else self.alpha**2
        return self.effect if by == "effect" else getattr(getattr(self, split), by)


@dataclass(frozen=True)
class Ranking:
    """Features in order, and the controls beside them.

    Attributes:
        by: What the order goes by.
        features: Those active on validation prompts first, each group by its validation score, highest first.
        controls: Random vectors at the same scale, in the same order.
        completions: Everything that was said on the way.
        settings: How it was made (JSON-able).
    """

    by: str
    features: tuple[Ranked, ...]
    controls: tuple[Ranked, ...]
    completions: Completions
    settings: dict[str, Any]

    @property
    def summary(self) -> dict[str, Any]:
        """Features against controls on held-out prompts.

        Counts of flags, means, and how many active features beat the best active control (``above_best_control``), with how many would if
        features were random too (``expected_by_chance``). Effects are of the fit's own prompts.
        """
        groups = {"features": self.features, "controls": self.controls}
        flags = {
            kind: {
                name: sum(r.flag == name for r in rows) for name in ("active", "inert", "broken")
            }
            for kind, rows in groups.items()
        }
        means = {
            kind: {
                name: mean([r.score(name, "held_out") for r in rows])
                for name in ("novelty", "nll", "kl", "effect")
            }
            for kind, rows in groups.items()
        }
        best = above = chance = None
        rivals = [r.score(self.by, "held_out") for r in self.controls if r.flag == "active"]
        if (
            rivals and self.by != "alpha"
        ):  # a random vector has no strength of its own to compare with
            best = max(rivals)
            above = sum(
                r.score(self.by, "held_out") > best for r in self.features if r.flag == "active"
            )
            chance = flags["features"]["active"] / (len(rivals) + 1)
        return {
            **flags,
            "means": means,
            "best_control": best,
            "above_best_control": above,
            "expected_by_chance": chance,
        }

    def describe(self) -> dict[str, Any]:
        """Everything but the completions, JSON-able."""
        return {
            "by": self.by,
            "summary": self.summary,
            "settings": self.settings,
            "features": [{**asdict(r), "flag": r.flag} for r in self.features],
            "controls": [{**asdict(r), "flag": r.flag} for r in self.controls],
        }

    def save(self, folder: str | Path) -> None:
        """Write ``ranking.json`` and ``completions.jsonl`` into a run folder, in the place of an earlier ranking."""
        folder = Path(folder)
        write_atomically(
            {
                folder / "completions.jsonl": self.completions.to_jsonl(),
                folder / "ranking.json": to_json(self.describe()),
            }
        )


def rank(
    lm: LanguageModel,
    features: FeatureSet,
    validation: Prompts,
    held_out: Prompts,
    *,
    by: str = "novel",
    contrast: tuple[str, str] | None = None,
    num_controls: int = 32,
    max_new_tokens: int = 32,
    batch_size: int = 128,
    seed: int = 0,
    progress: bool = True,
) -> Ranking:
    """Generate with every feature and every control, score, flag, order.

    Args:
        lm: The model of the features.
        bank: The features.
        validation: Prompts the order is chosen on.
        held_out: Prompts the reported scores come from; none of them among the others.
        by: One of `ORDERS`.
        contrast: Two strings; the first token of each is compared.
        num_controls: How many random vectors at the same scale.
        max_new_tokens: Length of a reply at most.
        batch_size: Rows decoded together.
        seed: Of the controls.
        progress: Draw bars.

    Raises:
        MelboError: An unknown order, ``"contrast"`` without a pair, prompts in more than one role, or features of another model.
    """
    _check(features, validation, held_out, by, contrast, num_controls)
    features.check_model(lm)
    pair = first_tokens(lm, contrast) if contrast is not None else None
    # a stream of their own: the same seed also drew the directions of a fit by `Random`
    controls = features.random(num_controls, torch.Generator().manual_seed(_CONTROL_STREAM + seed))
    prompts = Prompts(
        validation.texts + held_out.texts,
        validation.tokens + held_out.tokens,
        validation.kind,
        validation.system,
    )

    table = generate(
        lm,
        prompts,
        features,
        controls,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        contrast=pair,
        progress=progress,
    )
    judged = Judged(lm, prompts, table, progress)
    effects = _effects(lm, features.join(controls))
    choosing, telling = range(len(validation)), range(len(validation), len(prompts))

    def ranked(kind: str, index: int, alpha: float | None, effect: float) -> Ranked:
        return Ranked(
            index,
            kind,
            alpha,
            effect,
            judged.scores(kind, index, choosing),
            judged.scores(kind, index, telling),
        )

    scored = [
        ranked("feature", i, features.alpha[i].item(), effects[i]) for i in range(len(features))
    ]
    others = [ranked("control", i, None, effects[len(features) + i]) for i in range(len(controls))]
    settings = {
        "order": ORDERS[by],
        "contrast": list(contrast) if contrast else None,
        "contrast_tokens": [lm.tokenizer.decode([t]) for t in pair] if pair else None,
        "validation": validation.describe(),
        "held_out": held_out.describe(),
        "num_controls": num_controls,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }
    return Ranking(by, _in_order(scored, by), _in_order(others, by), table, settings)


def load_ranking(folder: str | Path) -> tuple[dict[str, Any], list[Completion]]:
    """``ranking.json`` and ``completions.jsonl`` of a run folder (token ids are not kept).

    Raises:
        MelboError: The run has not been ranked, or a file is truncated.
    """
    folder = Path(folder)
    if not (folder / "ranking.json").is_file() or not (folder / "completions.jsonl").is_file():
        raise MelboError(f"the run in {folder} has not been ranked: melbo rank {folder}")
    try:
        ranking = json.loads((folder / "ranking.json").read_text(encoding="utf-8"))
        lines = (
            (folder / "completions.jsonl").read_text(encoding="utf-8").split("\n")
        )  # a reply may hold other line ends
        completions = [Completion(**json.loads(line), tokens=()) for line in lines if line]
    except (json.JSONDecodeError, TypeError, UnicodeDecodeError) as err:
        raise MelboError(
            f"the ranking in {folder} is truncated ({err}): melbo rank {folder}"
        ) from err
    try:
        vectors = 1 + len(ranking["features"]) + len(ranking["controls"])
        expected = vectors * sum(
            len(ranking["settings"][split]["texts"]) for split in ("validation", "held_out")
        )
    except (TypeError, KeyError) as err:
        raise MelboError(
            f"{folder / 'ranking.json'} does not hold a ranking: melbo rank {folder}"
        ) from err
    if len(completions) != expected:
        raise MelboError(
            f"the ranking in {folder} is truncated ({len(completions)} of {expected} completions): melbo rank {folder}"
        )
    return ranking, completions


def _check(
    features: FeatureSet,
    validation: Prompts,
    held_out: Prompts,
    by: str,
    contrast: Any,
    num_controls: int,
) -> None:
    if by not in ORDERS:
        raise MelboError(f"no order {by!r}: expected one of {', '.join(ORDERS)}")
    if by == "contrast" and contrast is None:
        raise MelboError(
            "the order 'contrast' needs two strings: contrast=('Sure', 'Sorry'), or --contrast Sure Sorry"
        )
    if "prompts" not in features.meta.get("map", {}):
        raise MelboError(
            "these features were not fitted on a CausalMap: rank needs to know their prompts; use generate"
        )
    if num_controls < 1:
        raise MelboError(
            f"num_controls is {num_controls}: expected at least 1; a score without a control says little"
        )
    fitted = {tuple(t) for t in features.meta.get("map", {}).get("prompts", {}).get("tokens", [])}
    for name, one, other in (
        ("held-out", held_out.tokens, set(validation.tokens) | fitted),
        ("validation", validation.tokens, fitted),
    ):
        for text, tokens in zip(
            held_out.texts if name == "held-out" else validation.texts, one, strict=True
        ):
            if tokens in other:
                raise MelboError(
                    f"the {name} prompt {text!r} was used before (fit or validation): scores on it would flatter; give another"
                )


def _effects(lm: LanguageModel, features: FeatureSet) -> list[float]:
    """‖Δ_R(v)‖ on the prompts of the fit."""
    cmap = map_from_description(lm, features.meta["map"])
    effects = cmap.value(features.scale * features.V).norm(dim=-1)
    return effects.nan_to_num(nan=torch.finfo(effects.dtype).max).tolist()


def _in_order(rows: list[Ranked], by: str) -> tuple[Ranked, ...]:
    """Active before the rest: a broken reply can be very new and, repeating itself, very likely."""
    return tuple(
        sorted(rows, key=lambda r: (r.validation.flag != "active", -r.score(by, "validation")))
    )
