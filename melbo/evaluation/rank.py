"""Features in the order of what they do on new prompts, with random features as a control."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from melbo.errors import MelboError
from melbo.evaluation.held_out import refuse_reused
from melbo.evaluation.kept_replies import replies_in_parts
from melbo.evaluation.ranking import COMPLETIONS, RANKING, Split, in_order
from melbo.evaluation.ranking import ORDERS as ORDERS
from melbo.evaluation.ranking import Ranked as Ranked
from melbo.evaluation.ranking import Ranking as Ranking
from melbo.evaluation.scores import Judged, Scores
from melbo.evaluation.toward import Toward, along_each, describe_toward, target_vector
from melbo.features.directions import FeatureSet
from melbo.features.generate import Completion, Completions, first_tokens
from melbo.features.steerable import require_features
from melbo.maps.described import map_from_description
from melbo.models.language_model import LanguageModel
from melbo.models.text.prompts import Prompts, require_prompts

# added to the seed: a fit by `Random` of the same seed would draw the same directions
_CONTROL_STREAM = 0x6D656C626F


def rank(
    lm: LanguageModel,
    features: FeatureSet,
    validation: Prompts,
    held_out: Prompts,
    *,
    by: str = "novel",
    contrast: tuple[str, str] | None = None,
    toward: Toward | None = None,
    num_controls: int = 32,
    max_new_tokens: int = 32,
    batch_size: int = 128,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Ranking:
    """Let the model reply with every feature and every control, then score, flag and order them.

    Args:
        lm: The model of the features.
        features: The features.
        validation: Prompts that the order is chosen on.
        held_out: Prompts that the reported scores come from; none of them is one of the others.
        by: One of `ORDERS`.
        contrast: Two strings, of which the first tokens are compared.
        toward: Target vector of ``by="target"``, or two strings; those of ``contrast`` if left out.
        num_controls: Number of random vectors at the same scale.
        max_new_tokens: Length of a reply at most.
        batch_size: Rows decoded together.
        seed: Random seed of the controls.
        folder: Run folder in which replies are kept as they come: a call that was broken off goes
            on with them. The ranking itself is written by `Ranking.save`.
        progress: Whether to draw bars.

    Raises:
        MelboError: An argument cannot work, or a prompt is in two roles.
    """
    require_features(features=features)
    require_prompts(validation=validation, held_out=held_out)
    toward = contrast if by == "target" and toward is None else toward
    _check(lm, features, validation, held_out, by, contrast, num_controls, toward)
    pair = None if contrast is None else first_tokens(lm, contrast)
    controls = features.random(num_controls, torch.Generator().manual_seed(_CONTROL_STREAM + seed))
    replies = replies_in_parts(
        lm,
        _one_after_the_other(validation, held_out),
        features,
        controls,
        folder,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        contrast=pair,
        progress=progress,
    )
    splits = {"validation": validation.describe(), "held_out": held_out.describe()}
    numbers = {"num_controls": num_controls, "max_new_tokens": max_new_tokens, "seed": seed}
    settings = {**_describe_order(lm, by, contrast, pair, toward), **splits, **numbers}
    both = validation, held_out
    ours, others, own = _scored(lm, features, controls, replies, both, toward, progress)
    return Ranking(by, in_order(ours, by), in_order(others, by), replies, settings, own)


def _describe_order(
    lm: LanguageModel,
    by: str,
    contrast: tuple[str, str] | None,
    pair: tuple[int, int] | None,
    toward: Toward | None,
) -> dict[str, Any]:
    return {
        "order": ORDERS[by],
        "contrast": list(contrast) if contrast else None,
        "contrast_tokens": [lm.tokenizer.decode([t]) for t in pair] if pair else None,
        **describe_toward(toward),
    }


def load_ranking(folder: str | Path) -> tuple[dict[str, Any], list[Completion]]:
    """The ranking of a run folder, as JSON, and its completions, without token ids.

    Raises:
        MelboError: The run has not been ranked, or a file is truncated.
    """
    folder, remedy = Path(folder), f"melbo rank {folder}"
    if not has_ranking(folder):
        raise MelboError(f"the run in {folder} has not been ranked: {remedy}")
    try:
        ranking = json.loads((folder / RANKING).read_text(encoding="utf-8"))
        # split at "\n" only: a reply may hold other line ends
        lines = (folder / COMPLETIONS).read_text(encoding="utf-8").split("\n")
        completions = [Completion(**json.loads(line), tokens=()) for line in lines if line]
    except (json.JSONDecodeError, TypeError, UnicodeDecodeError) as err:
        raise MelboError(f"the ranking in {folder} is truncated ({err}): {remedy}") from err
    try:
        vectors = 1 + len(ranking["features"]) + len(ranking["controls"])
        splits = [ranking["settings"][split]["texts"] for split in ("validation", "held_out")]
        expected = vectors * sum(map(len, splits))
    except (TypeError, KeyError) as err:
        raise MelboError(f"{folder / RANKING} does not hold a ranking: {remedy}") from err
    if len(completions) != expected:
        raise MelboError(
            f"the ranking in {folder} is truncated "
            f"({len(completions)} of {expected} completions): {remedy}"
        )
    return ranking, completions


def has_ranking(folder: Path) -> bool:
    """Tell whether a run folder holds a ranking with its completions."""
    return all((folder / name).is_file() for name in (RANKING, COMPLETIONS))


def _check(
    lm: LanguageModel,
    features: FeatureSet,
    validation: Prompts,
    held_out: Prompts,
    by: str,
    contrast: tuple[str, str] | None,
    num_controls: int,
    toward: Toward | None,
) -> None:
    """Refuse arguments of `rank` that cannot work.

    Raises:
        MelboError: There are such arguments.
    """
    if by not in ORDERS:
        raise MelboError(f"no order {by!r}: expected one of {', '.join(ORDERS)}")
    if by == "contrast" and contrast is None:
        raise MelboError(
            "the order 'contrast' needs two strings: "
            "contrast=('Sure', 'Sorry'), or --contrast Sure Sorry"
        )
    if by == "target" and toward is None:
        raise MelboError(
            "the order 'target' needs a target vector, or two strings for one: "
            "toward=('Sure', 'Sorry'), or --contrast Sure Sorry"
        )
    if by != "target" and toward is not None:
        raise MelboError(f"toward belongs to the order 'target', got by={by!r}: leave it out")
    if num_controls < 1:
        raise MelboError(
            f"num_controls is {num_controls}: "
            "expected at least 1; a score without a control says little"
        )
    fitted = features.provenance.prompts
    if fitted is None:
        raise MelboError(
            "these features were not fitted on prompts of a language model, "
            "which rank needs to know: use generate"
        )
    use = "was used before (fit or validation)"
    refuse_reused(held_out, {*validation.tokens, *fitted.tokens}, "held-out", use)
    refuse_reused(validation, set(fitted.tokens), "validation", use)
    features.check_model(lm)
    if toward is not None:
        # refused before anything is generated
        target_vector(lm, toward)


def _one_after_the_other(first: Prompts, second: Prompts) -> Prompts:
    return replace(first, texts=first.texts + second.texts, tokens=first.tokens + second.tokens)


def _scored(
    lm: LanguageModel,
    features: FeatureSet,
    controls: FeatureSet,
    replies: Completions,
    splits: tuple[Prompts, Prompts],
    toward: Toward | None,
    progress: bool,
) -> tuple[list[Ranked], list[Ranked], dict[Split, Scores]]:
    """Features and controls with their scores, and scores of the unsteered model.

    ``splits`` are the validation and the held-out prompts, which replies come in the order of.
    """
    validation, held_out = splits
    judged = Judged(lm, _one_after_the_other(*splits), replies, progress)
    places: dict[Split, range] = {
        "validation": range(len(validation)),
        "held_out": range(len(validation), len(validation) + len(held_out)),
    }
    both = features.join(controls)
    sums = along_each(lm, both, toward, *splits)
    who = [("feature", i) for i in range(len(features))]
    who += [("control", i) for i in range(len(controls))]
    along: list[dict[Split, float] | None] = [None] * len(who)
    if sums is not None:
        along = [{"validation": a, "held_out": b} for a, b in zip(*sums, strict=True)]
    alpha = [*features.alpha.tolist(), *[None] * len(controls)]
    rows = [
        Ranked(
            index,
            kind,
            strength,
            effect,
            judged.scores(kind, index, places["validation"]),
            judged.scores(kind, index, places["held_out"]),
            target,
        )
        for (kind, index), strength, effect, target in zip(
            who, alpha, _effects(lm, both), along, strict=True
        )
    ]
    own = {split: judged.scores("unsteered", None, places[split]) for split in places}
    return rows[: len(features)], rows[len(features) :], own


def _effects(lm: LanguageModel, features: FeatureSet) -> list[float]:
    """‖Δ_R(v)‖ of each feature on the prompts of the fit."""
    cmap = map_from_description(lm, features.meta["map"])
    effects = cmap.value(features.scale * features.V).norm(dim=-1)
    finite: list[float] = effects.nan_to_num(nan=torch.finfo(effects.dtype).max).tolist()
    return finite
