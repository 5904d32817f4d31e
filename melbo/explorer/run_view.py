"""A run as a page shows it: rows of a table, replies beside each other, curves."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from melbo.evaluation.columns import ALPHA, Column, columns, prompts_of, ranked_rows
from melbo.evaluation.fit_record import FitRecord
from melbo.evaluation.rank import has_ranking, load_ranking
from melbo.explorer.directions import alike, cluster_numbers, nearest, places
from melbo.explorer.labels import Labels
from melbo.explorer.names import names
from melbo.features.directions import FeatureSet
from melbo.features.generate import Completion
from melbo.features.provenance import Provenance
from melbo.features.run_folder import TENSORS, read_run
from melbo.features.saved import load_features


@dataclass(frozen=True)
class Row:
    """A feature as a row of the table.

    Attributes:
        index: Its index.
        name: Its distinctive words; empty where it has none.
        flag: ``"active"``, ``"inert"`` or ``"broken"``; None where the run has not been ranked.
        values: Its value in each of the columns.
        cluster: Number of its cluster; None where it is alone.
    """

    index: int
    name: str
    flag: str | None
    values: tuple[float | None, ...]
    cluster: int | None


@dataclass(frozen=True)
class Said:
    """Replies to one prompt.

    Attributes:
        prompt: The prompt.
        part: ``"held-out"`` or ``"validation"``.
        feature: Reply under the feature.
        unsteered: The model's own reply.
        control: Reply under a random direction.
    """

    prompt: str
    part: str
    feature: str
    unsteered: str
    control: str


class RunView:
    """A run, ranked or not, with its labels.

    Args:
        folder: The run folder.

    Attributes:
        folder: The run folder.
        features: Its directions; None for a run of another kind, which has a single feature.
        provenance: Origin of its features.
        record: Curves of its fit.
        ranking: Its ranking as JSON, or None.
        controls: Indices of the random directions, in the order of the ranking.
        columns: Columns of numbers.
        labels: Labels of one's own; the key of a feature is its index as a text.
        rows: The features, in the order of the ranking where there is one.

    Raises:
        MelboError: There is no run in the folder, it is truncated or of another version, or its
            labels can neither be read nor set aside.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        run = read_run(folder)
        self.features: FeatureSet | None = None
        if run["kind"] in ("features", "adapters"):
            self.features = load_features(folder)
        self.provenance = Provenance.of(run)
        self.record = FitRecord.of(run, self.num)
        self.ranking, self._completions = _ranking(folder)
        self._texts = {(c.kind, c.feature, c.prompt): c.text for c in self._completions}
        self.controls: list[int] = []
        self.columns: list[Column] = [] if self.features is None else [ALPHA]
        if self.ranking is not None:
            self.controls = [row["index"] for row in self.ranking["controls"]]
            self.columns = columns(self.ranking, self.record.stability)
        self.labels = Labels(folder, TENSORS if self.features is not None else None)
        self.rows = self._rows()

    @property
    def num(self) -> int:
        """Number of features."""
        return 1 if self.features is None else len(self.features)

    def _rows(self) -> list[Row]:
        """The features, in the order of the ranking where there is one."""
        called = names(self._completions)
        clusters: list[int | None] = [None]
        if self.features is not None:
            clusters = cluster_numbers(self.features.canonical)
        if self.ranking is None:
            alpha = [()] if self.features is None else [(a,) for a in self.features.alpha.tolist()]
            return [Row(i, "", None, alpha[i], clusters[i]) for i in range(self.num)]
        ranked = ranked_rows(self.ranking, self.record.stability)[: self.num]
        values = zip(*(column.values(ranked) for column in self.columns), strict=True)
        return [
            Row(
                row["index"],
                called.get(row["index"], ""),
                row["flag"],
                value,
                clusters[row["index"]],
            )
            for row, value in zip(ranked, values, strict=True)
        ]

    @cached_property
    def names(self) -> dict[int, str]:
        """Distinctive words of each feature."""
        return {row.index: row.name for row in self.rows}

    @cached_property
    def map(self) -> list[tuple[float, float]]:
        """Place of each feature on a map; takes seconds for hundreds of features."""
        return [(0.0, 0.0)] if self.features is None else places(self.features.canonical)

    def called(self, index: int) -> str:
        """Name of a feature: one's own, or else its distinctive words."""
        return self.labels[str(index)].name or self.names.get(index, "")

    def replies(self, index: int, control: int | None) -> list[Said]:
        """Replies of a feature, prompt by prompt, beside those without it; held-out prompts first.

        Args:
            index: The feature.
            control: Index of the random direction.
        """
        if self.ranking is None:
            return []
        return [
            Said(
                text,
                part,
                *(
                    self._texts.get((*who, prompt), "")
                    for who in (("feature", index), ("unsteered", None), ("control", control))
                ),
            )
            for prompt, text, part in prompts_of(self.ranking)
        ]

    def alike(self, index: int, num: int) -> tuple[list[tuple[int, float]], ...]:
        """Similar and opposite features; see `melbo.explorer.directions.alike`."""
        return ([], []) if self.features is None else alike(self.features.canonical, index, num)

    def nearest_in(self, other: "RunView", index: int) -> tuple[int, float] | None:
        """Feature of another run that is most like one of these, and their cosine.

        Args:
            other: The other run.
            index: The feature.

        Returns:
            None where the two runs do not steer the same place of one model.
        """
        ours, theirs = self.features, other.features
        if ours is None or theirs is None or not _comparable(self, other):
            return None
        return nearest(ours.canonical[index], theirs.canonical)

    def where_said(self, query: str) -> set[int]:
        """Features with a reply that holds a text, in capitals or not.

        Args:
            query: The text; nothing, or white space alone, is in all replies.
        """
        query = query.strip().lower()
        if not query:
            return set(range(self.num))
        return {i for i, texts in self._lowered.items() if any(query in text for text in texts)}

    @cached_property
    def _lowered(self) -> dict[int, list[str]]:
        """Replies of each feature in lower case."""
        texts: dict[int, list[str]] = {}
        for c in self._completions:
            if c.kind == "feature" and c.feature is not None:
                texts.setdefault(c.feature, []).append(c.text.lower())
        return texts


def _ranking(folder: Path) -> tuple[dict[str, Any] | None, Sequence[Completion]]:
    """The ranking of a run and its replies; None and none where it has not been ranked."""
    return load_ranking(folder) if has_ranking(folder) else (None, [])


def _comparable(one: RunView, two: RunView) -> bool:
    """Tell whether the directions of two runs are of the same place in the same model."""

    def place(run: RunView) -> tuple[Any, ...]:
        assert run.features is not None
        made = run.provenance
        shape = run.features.canonical.shape[1]
        return made.model_sha256, run.features.kind, run.features.source, shape, made.sites

    return place(one) == place(two)
