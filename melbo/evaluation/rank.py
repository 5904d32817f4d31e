"""Features in the order of what they do on new prompts, with random features as a control."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from melbo.errors import MelboError
from melbo.evaluation.held_out import refuse_reused
from melbo.evaluation.scores import Flag, Judged, Scores
from melbo.evaluation.toward import Toward, along_each, describe_toward
from melbo.features.directions import FeatureSet
from melbo.features.generate import Completion, Completions, first_tokens, generate
from melbo.maps.described import map_from_description
from melbo.maths.statistics import mean
from melbo.models.language_model import LanguageModel
from melbo.models.text.prompts import Prompts
from melbo.records import to_json, write_atomically

_RANKING, _COMPLETIONS = "ranking.json", "completions.jsonl"
# added to the seed: a fit by `Random` of the same seed would draw the same directions
_CONTROL_STREAM = 0x6D656C626F

#: Orders by name, each with the score that it goes by.
ORDERS = {
    "novel": (
        "novel yet fluent: says something other than the unsteered model, "
        "in words the unsteered model finds sayable"
    ),
    "alpha": "α², the strength of the factor in the transcoder",
    "effect": "‖Δ_R(v)‖, how far the target layer moves",
    "target": "⟨target vector, Δ_R(v)⟩ at the end of the model, before the final norm",
    "contrast": "logit(A) − logit(B) of the first token of the reply",
    "kl": "KL(steered ‖ unsteered) of the first token of the reply",
}

Split = Literal["validation", "held_out"]


@dataclass(frozen=True)
class Ranked:
    """One vector in a ranking.

    Attributes:
        index: Its index in its set.
        kind: ``"feature"`` or ``"control"``.
        alpha: Its strength in the transcoder; None for a control.
        effect: ‖Δ_R(v)‖ on the prompts of the fit.
        validation: Its scores on the prompts that the order is chosen on.
        held_out: Its scores on the prompts that are reported.
        toward: ⟨target vector, Δ_R(v)⟩ on each of the two; None where there is no target vector.
    """

    index: int
    kind: str
    alpha: float | None
    effect: float
    validation: Scores
    held_out: Scores
    toward: dict[Split, float] | None = None

    @property
    def flag(self) -> Flag:
        """``"active"``, ``"inert"`` or ``"broken"`` on held-out prompts.

        The order goes by the flag on validation prompts.
        """
        return self.held_out.flag

    def score(self, by: str, split: Split) -> float:
        """Its value in an order.

        Args:
            by: One of `ORDERS`, or another score of `Scores`.
            split: ``"validation"`` or ``"held_out"`` prompts.

        Raises:
            MelboError: There is no such score, or it was not taken.
        """
        scores = self.validation if split == "validation" else self.held_out
        known: dict[str, float | None] = {
            "alpha": 0.0 if self.alpha is None else self.alpha**2,
            "effect": self.effect,
            "target": None if self.toward is None else self.toward[split],
            "novel": scores.novel,
            "novelty": scores.novelty,
            "nll": scores.nll,
            "repetition": scores.repetition,
            "kl": scores.kl,
            "contrast": scores.contrast,
        }
        value = known.get(by)
        if value is None:
            there = ", ".join(name for name, score in known.items() if score is not None)
            raise MelboError(f"there is no score {by!r}: expected one of {there}")
        return value


@dataclass(frozen=True)
class Ranking:
    """Features in order, and the controls beside them.

    Attributes:
        by: Name of the order (see `ORDERS`).
        features: The features, active ones on validation prompts first; within active and other
            ones by the validation score, highest first.
        controls: Random vectors at the same scale, in the same order.
        completions: The replies that the scores come from.
        settings: How the ranking was made (JSON-able).
    """

    by: str
    features: tuple[Ranked, ...]
    controls: tuple[Ranked, ...]
    completions: Completions
    settings: dict[str, Any]

    @property
    def summary(self) -> dict[str, Any]:
        """Features against controls on held-out prompts.

        It holds counts of flags, means, the score of the best active control (``best_control``),
        the number of active features above it (``above_best_control``), and their number if
        features were random too (``expected_by_chance``). Effects are those on the prompts of the
        fit.
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
        ours, rivals = (
            [r.score(self.by, "held_out") for r in rows if r.flag == "active"]
            for rows in groups.values()
        )
        # a random vector has no α of its own to compare with
        if rivals and self.by != "alpha":
            best = max(rivals)
            above = sum(score > best for score in ours)
            chance = len(ours) / (len(rivals) + 1)
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
        """Write ``ranking.json`` and ``completions.jsonl`` into a run folder.

        An earlier ranking in the folder is replaced.
        """
        folder = Path(folder)
        write_atomically(
            {
                folder / _COMPLETIONS: self.completions.to_jsonl(),
                folder / _RANKING: to_json(self.describe()),
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
    toward: Toward | None = None,
    num_controls: int = 32,
    max_new_tokens: int = 32,
    batch_size: int = 128,
    seed: int = 0,
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
        progress: Whether to draw bars.

    Raises:
        MelboError: An argument cannot work, or a prompt is in two roles.
    """
    toward = contrast if by == "target" and toward is None else toward
    _check(lm, features, validation, held_out, by, contrast, num_controls, toward)
    pair = None if contrast is None else first_tokens(lm, contrast)
    controls = features.random(num_controls, torch.Generator().manual_seed(_CONTROL_STREAM + seed))
    prompts = _one_after_the_other(validation, held_out)
    sums = along_each(lm, features.join(controls), toward, validation, held_out)
    replies = generate(
        lm,
        prompts,
        features,
        controls,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        contrast=pair,
        progress=progress,
    )
    judged = Judged(lm, prompts, replies, progress)
    ours, others = _scored(lm, features, controls, judged, len(validation), len(prompts), sums)
    settings = {
        **_describe_order(lm, by, contrast, pair, toward),
        **{"validation": validation.describe(), "held_out": held_out.describe()},
        "num_controls": num_controls,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }
    return Ranking(by, _in_order(ours, by), _in_order(others, by), replies, settings)


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
        ranking = json.loads((folder / _RANKING).read_text(encoding="utf-8"))
        # split at "\n" only: a reply may hold other line ends
        lines = (folder / _COMPLETIONS).read_text(encoding="utf-8").split("\n")
        completions = [Completion(**json.loads(line), tokens=()) for line in lines if line]
    except (json.JSONDecodeError, TypeError, UnicodeDecodeError) as err:
        raise MelboError(f"the ranking in {folder} is truncated ({err}): {remedy}") from err
    try:
        vectors = 1 + len(ranking["features"]) + len(ranking["controls"])
        splits = [ranking["settings"][split]["texts"] for split in ("validation", "held_out")]
        expected = vectors * sum(map(len, splits))
    except (TypeError, KeyError) as err:
        raise MelboError(f"{folder / _RANKING} does not hold a ranking: {remedy}") from err
    if len(completions) != expected:
        raise MelboError(
            f"the ranking in {folder} is truncated "
            f"({len(completions)} of {expected} completions): {remedy}"
        )
    return ranking, completions


def has_ranking(folder: Path) -> bool:
    """Tell whether a run folder holds a ranking with its completions."""
    return all((folder / name).is_file() for name in (_RANKING, _COMPLETIONS))


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


def _one_after_the_other(first: Prompts, second: Prompts) -> Prompts:
    return replace(first, texts=first.texts + second.texts, tokens=first.tokens + second.tokens)


def _scored(
    lm: LanguageModel,
    features: FeatureSet,
    controls: FeatureSet,
    judged: Judged,
    num_validation: int,
    num_prompts: int,
    sums: Sequence[Sequence[float]] | None,
) -> tuple[list[Ranked], list[Ranked]]:
    """Features and controls with their scores; validation prompts come before held-out ones.

    ``sums`` are their changes along the target vector, on the ones and the others.
    """
    effects = _effects(lm, features.join(controls))
    alpha = [*features.alpha.tolist(), *[None] * len(controls)]
    who = [("feature", i) for i in range(len(features))]
    who += [("control", i) for i in range(len(controls))]
    toward: list[dict[Split, float] | None] = [None] * len(who)
    if sums is not None:
        toward = [{"validation": a, "held_out": b} for a, b in zip(*sums, strict=True)]
    rows = [
        Ranked(
            index,
            kind,
            strength,
            effect,
            judged.scores(kind, index, range(num_validation)),
            judged.scores(kind, index, range(num_validation, num_prompts)),
            target,
        )
        for (kind, index), strength, effect, target in zip(who, alpha, effects, toward, strict=True)
    ]
    return rows[: len(features)], rows[len(features) :]


def _effects(lm: LanguageModel, features: FeatureSet) -> list[float]:
    """‖Δ_R(v)‖ of each feature on the prompts of the fit."""
    cmap = map_from_description(lm, features.meta["map"])
    effects = cmap.value(features.scale * features.V).norm(dim=-1)
    finite: list[float] = effects.nan_to_num(nan=torch.finfo(effects.dtype).max).tolist()
    return finite


def _in_order(rows: list[Ranked], by: str) -> tuple[Ranked, ...]:
    """Active before the rest: a broken reply can be very new and, repeating itself, very likely."""
    ordered = sorted(
        rows, key=lambda r: (r.validation.flag != "active", -r.score(by, "validation"))
    )
    return tuple(ordered)
