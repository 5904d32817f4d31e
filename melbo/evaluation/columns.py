"""Columns of numbers that a ranking has for each of its vectors, and the prompts of its replies."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from melbo.evaluation.scores import NLL_WEIGHT

_Json = dict[str, Any]


@dataclass(frozen=True)
class Score:
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
    "novel": Score("novel yet fluent", f"novelty less {NLL_WEIGHT:g} × NLL", "high"),
    "novelty": Score("novelty", "1 − tf-idf cosine with the unsteered reply", "high"),
    "nll": Score("NLL", "negative log-likelihood under the unsteered model, nats a token", "low"),
    "repetition": Score(
        "repet.", "repetition: share of the reply’s 4-grams that repeat earlier ones", "low"
    ),
    "kl": Score("KL", "KL(steered ‖ unsteered) of the first token of the reply, nats", "high"),
    "contrast": Score("contrast", "logit(A) − logit(B) of the first token of the reply", "high"),
}


@dataclass(frozen=True)
class Column:
    """A column of numbers.

    Attributes:
        group: Heading over it and its neighbours.
        score: The score that it shows.
        split: Part of a row of the ranking that holds its value; None for the row itself.
        key: Key of the value there.
        name: Heading.
    """

    group: str
    score: Score
    split: str | None
    key: str
    name: str

    def values(self, rows: Sequence[_Json]) -> list[float | None]:
        """Value of each row of the ranking."""
        return [row[self.split][self.key] if self.split else row[self.key] for row in rows]


_ALPHA = Score("α", "strength of the factor in the transcoder", "high")
#: The one column of a run that has not been ranked.
ALPHA = Column("on the fit’s prompts", _ALPHA, None, "alpha", _ALPHA.name)


def ranked_rows(ranking: _Json, stability: _Json | None) -> list[_Json]:
    """Rows of the ranking, with the cosines of other seeds where they are known."""
    rows: list[_Json] = ranking["features"] + ranking["controls"]
    if stability is None:
        return rows
    cosines = [
        stability["cosine"][row["index"]] if row["kind"] == "feature" else None for row in rows
    ]
    return [{**row, "seeds": {"cosine": c}} for row, c in zip(rows, cosines, strict=True)]


def columns(ranking: _Json, stability: _Json | None) -> list[Column]:
    """The columns of numbers."""
    by = ranking["by"] if ranking["by"] in _SCORES else "novel"
    group = f"score: {_SCORES[by].name}"
    found = [
        Column(group, _SCORES[by], "validation", by, "validation"),
        Column(group, _SCORES[by], "held_out", by, "held-out"),
    ]
    if ranking["by"] == "target":
        toward = Score("along target", "⟨target vector, Δ⟩ at the end of the model", "high")
        found += [
            Column(toward.name, toward, "toward", split, name)
            for split, name in (("validation", "validation"), ("held_out", "held-out"))
        ]
    known = ranking["controls"][0]["held_out"]
    found += [
        Column("on held-out prompts", score, "held_out", key, score.name)
        for key, score in _SCORES.items()
        if key not in ("novel", by) and known[key] is not None
    ]
    if stability:
        hint = (
            "best cosine among the features of another seed, mean over the other seeds; "
            f"random directions {stability['baseline']:.2f}"
        )
        again = Score("found again", hint, "high")
        group = f"over {stability['seeds']} seeds"
        found.append(Column(group, again, "seeds", "cosine", again.name))
    effect = Score("‖Δ‖", "how far the target layer moves", "high")
    return [*found, ALPHA, Column(ALPHA.group, effect, None, "effect", effect.name)]


def prompts_of(ranking: _Json) -> list[tuple[int, str, str]]:
    """Prompts of a ranking, held-out ones first: index, text and part of each."""
    validation, held_out = (
        ranking["settings"][split]["texts"] for split in ("validation", "held_out")
    )
    return [
        *((len(validation) + i, text, "held-out") for i, text in enumerate(held_out)),
        *((i, text, "validation") for i, text in enumerate(validation)),
    ]
