"""A saved ranking in another order, without replies being generated again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from melbo.errors import MelboError
from melbo.evaluation.rank import has_ranking, load_ranking
from melbo.evaluation.ranking import ORDERS, Ranked, Ranking, in_order
from melbo.evaluation.scores import Scores
from melbo.features.generate import Completions


def reordered(folder: str | Path, by: str, settings: Mapping[str, Any]) -> Ranking | None:
    """The ranking of a run folder in an order of its own choice.

    Args:
        folder: The run folder.
        by: One of `ORDERS`.
        settings: Settings that the saved ranking must have been made with: ``validation`` and
            ``held_out`` (texts of the prompts), ``contrast``, ``num_controls``, ``max_new_tokens``
            and ``seed``, any of them left out.

    Returns:
        None where there is no whole ranking, it was made with other settings, or it lacks the score
        that the order goes by.
    """
    folder = Path(folder)
    if not has_ranking(folder):
        return None
    try:
        saved, completions = load_ranking(folder)
        if not _agree(saved["settings"], settings):
            return None
        ours, others = (
            in_order([_ranked(row) for row in saved[kind]], by) for kind in ("features", "controls")
        )
        own = {split: Scores(**scores) for split, scores in saved.get("unsteered", {}).items()}
    except (MelboError, KeyError, TypeError):  # truncated, of another version, or without the score
        return None
    then = {**saved["settings"], "order": ORDERS[by]}
    return Ranking(by, ours, others, Completions(tuple(completions)), then, own or None)


def _agree(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Tell whether a ranking was made with the settings that are wanted."""
    then = {
        **saved,
        **{split: saved[split]["texts"] for split in ("validation", "held_out")},
    }
    given = {
        name: list(value) if isinstance(value, tuple) else value for name, value in wanted.items()
    }
    return all(then[name] == value for name, value in given.items())


def _ranked(row: Mapping[str, Any]) -> Ranked:
    """A row as it was saved."""
    both = {split: Scores(**row[split]) for split in ("validation", "held_out")}
    return Ranked(**{key: value for key, value in {**row, **both}.items() if key != "flag"})
