"""A ranking: features in the order of what they do, beside the controls, with all scores."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from melbo.errors import MelboError
from melbo.evaluation.ranking_shown import RankingShown
from melbo.evaluation.scores import Flag, Scores
from melbo.features.generate import Completions
from melbo.maths.statistics import mean
from melbo.records import to_json, write_atomically

#: Files that a ranking is kept in, and the replies of one that is under way.
RANKING, COMPLETIONS, UNDER_WAY = "ranking.json", "completions.jsonl", "replies.jsonl"

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


@dataclass(frozen=True, repr=False)
class Ranking(RankingShown):
    """Features in order, and the controls beside them.

    Attributes:
        by: Name of the order (see `ORDERS`).
        features: The features, active ones on validation prompts first; within active and other
            ones by the validation score, highest first.
        controls: Random vectors at the same scale, in the same order.
        completions: The replies that the scores come from.
        settings: How the ranking was made (JSON-able).
        unsteered: Scores of the model itself on either set of prompts; None in a ranking that was
            saved before they were kept.
    """

    by: str
    features: tuple[Ranked, ...]
    controls: tuple[Ranked, ...]
    completions: Completions
    settings: dict[str, Any]
    unsteered: dict[Split, Scores] | None = None

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
        own = {split: asdict(scores) for split, scores in (self.unsteered or {}).items()}
        return {
            "by": self.by,
            "summary": self.summary,
            "settings": self.settings,
            **({"unsteered": own} if own else {}),
            "features": [{**asdict(r), "flag": r.flag} for r in self.features],
            "controls": [{**asdict(r), "flag": r.flag} for r in self.controls],
        }

    def save(self, folder: str | Path) -> None:
        """Write ``ranking.json`` and ``completions.jsonl`` into a run folder.

        An earlier ranking in the folder is replaced, and replies of one under way are removed.
        """
        folder = Path(folder)
        write_atomically(
            {
                folder / COMPLETIONS: self.completions.to_jsonl(),
                folder / RANKING: to_json(self.describe()),
            }
        )
        (folder / UNDER_WAY).unlink(missing_ok=True)


def in_order(rows: Sequence[Ranked], by: str) -> tuple[Ranked, ...]:
    """Rows in an order: active ones before the rest, the highest score first within either.

    A broken reply can be very new and, repeating itself, very likely.

    Args:
        rows: Features, or controls.
        by: One of `ORDERS`.
    """
    ordered = sorted(
        rows, key=lambda r: (r.validation.flag != "active", -r.score(by, "validation"), r.index)
    )
    return tuple(ordered)
