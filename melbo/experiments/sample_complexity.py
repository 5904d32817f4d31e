"""How many prompts does it take? Held-out contrast of the best feature against the number of prompts that features are learnt from."""

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, ClassVar, NamedTuple

import torch

from ..causal_map import CausalMap
from ..errors import MelboError
from ..features import FeatureSet
from ..generate import generate
from ..load import load
from ..model import LanguageModel
from ..prompts import Prompts
from ..rank import first_tokens
from ..rows import Row
from ..score import FirstToken
from ..ways import WAYS, Ground
from .base import Experiment


class _Ready(NamedTuple):
    lm: LanguageModel
    texts: list[str]
    scale: float
    pair: tuple[int, int]


@dataclass(frozen=True)
class SampleComplexity(Experiment):
    """Methods × numbers of prompts × shuffles (METHOD §11, figure 1 of the published method).

    Every shuffle deals prompts to learn from, to validate and to test: the vector with the highest contrast on validation prompts is reported on test
    prompts. Ways that give no sign are tried with both. R is calibrated once, so that all are pushed alike.

    Attributes:
        model: As `melbo.load` takes it.
        prompts: A file with one prompt a line.
        contrast: Two strings A and B: the contrast is logit(A) − logit(B) of the first token of the reply.
        ways: Some of `melbo.ways.WAYS`.
        numbers: How many prompts are learnt from.
        shuffles: How often prompts are dealt anew.
        num_factors: m.
        source: Layer that is perturbed.
        target: Layer that is read.
        validation: Number of validation prompts.
        test: Number of test prompts.
        dtype: As `melbo.load` takes it.
    """

    question: ClassVar[str] = "How many prompts does it take?"
    model: str
    prompts: str
    contrast: tuple[str, str]
    ways: tuple[str, ...]
    numbers: tuple[int, ...]
    shuffles: int
    num_factors: int
    source: int
    target: int
    validation: int
    test: int
    dtype: str = "auto"

    @property
    def cases(self) -> list[Row]:
        """Shuffle after shuffle."""
        fixed = {"model": self.model, "num_factors": self.num_factors, "source": self.source, "target": self.target}
        return [{**fixed, "shuffle": s, "number": n, "way": way} for s in range(self.shuffles) for n in self.numbers for way in self.ways]

    def prepare(self) -> _Ready:
        """See `Experiment.prepare`."""
        texts = [line for line in Path(self.prompts).read_text(encoding="utf-8").splitlines() if line.strip()]
        need = max(self.numbers) + self.validation + self.test
        if len(set(texts)) < need:
            raise MelboError(f"{self.prompts} holds {len(set(texts))} prompts, expected {need}: add some, or lower numbers, validation or test")
        lm = load(self.model, self.dtype)
        ground = Ground(CausalMap(lm, Prompts.chat(lm, texts[:4]), self.source, self.target), progress=False)
        return _Ready(lm, texts, ground.scale, first_tokens(lm, self.contrast))

    def measure(self, ready: _Ready, case: Row) -> Row:
        """Contrast of the best on validation prompts, on test prompts; of the unsteered model too."""
        lm, way = ready.lm, WAYS[case["way"]]
        learn, validation, test = deal(self, ready.texts, case["shuffle"], case["number"])
        ground = Ground(CausalMap(lm, Prompts.chat(lm, learn), self.source, self.target), ready.scale)
        m = self.num_factors
        V, cost = ground.find(case["way"], m if way.signed else m // 2, ready.scale, seed=case["shuffle"])
        bank = ground.bank_of(V if way.signed else torch.cat([V, ground.map.opposite(V)]), ready.scale)
        of_each = _contrasts(lm, Prompts.chat(lm, validation), bank, ready.pair)[1:]
        best = max(range(len(bank)), key=of_each.__getitem__)
        unsteered, held_out = _contrasts(lm, Prompts.chat(lm, test), bank[best], ready.pair)
        return {"scale": ready.scale, "validation": of_each[best], "test": held_out, "unsteered": unsteered, **cost}

    def table(self, rows: Sequence[Row]) -> str:
        """Mean ± standard error over shuffles of the held-out contrast, ways by numbers of prompts."""
        lines = ["| prompts | " + " | ".join(self.ways) + " |", "|---" * (1 + len(self.ways)) + "|"]
        for n in self.numbers:
            cells = []
            for way in self.ways:
                middle, error = _over(rows, way, n)
                cells.append("–" if middle is None else f"{middle:.2f}" + (f" ± {error:.2f}" if error is not None else ""))
            lines.append(f"| {n} | " + " | ".join(cells) + " |")
        lines.append(f"\nUnsteered: {mean(row['unsteered'] for row in rows):.2f}.")
        return "\n".join(lines) + "\n"

    def picture(self, rows: Sequence[Row]) -> bytes:
        """The same, drawn."""
        from matplotlib import figure

        canvas = figure.Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = canvas.subplots()
        for way in self.ways:
            points = [(n, *_over(rows, way, n)) for n in self.numbers if any((r["way"], r["number"]) == (way, n) for r in rows)]
            x, y, e = [p[0] for p in points], [p[1] or 0.0 for p in points], [p[2] or 0.0 for p in points]
            axes.errorbar(x, y, e, marker="o", ms=3, lw=1.4, capsize=2, label=way, ls="-" if WAYS[way].method else ":")
        axes.axhline(mean(row["unsteered"] for row in rows), color="grey", lw=0.8)
        a, b = self.contrast
        axes.set(xscale="log", xticks=self.numbers, xticklabels=[str(n) for n in self.numbers], xlabel="prompts learnt from")
        axes.set(ylabel=f"held-out logit({a}) − logit({b}), best of {self.num_factors}")
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
        canvas.savefig(out := io.BytesIO(), format="png", dpi=130)
        return out.getvalue()


def deal(experiment: SampleComplexity, texts: Sequence[str], shuffle: int, number: int) -> tuple[list[str], list[str], list[str]]:
    """Prompts to learn from, to validate and to test, none in two of them; more to learn from are those of fewer, and others."""
    dealt = list(dict.fromkeys(texts))
    random.Random(shuffle).shuffle(dealt)
    edges = experiment.test, experiment.test + experiment.validation
    return dealt[edges[1] :][:number], dealt[edges[0] : edges[1]], dealt[: edges[0]]


def _contrasts(lm: LanguageModel, prompts: Prompts, bank: FeatureSet, pair: tuple[int, int]) -> list[float]:
    """Mean contrast over prompts: of the unsteered model, then of each feature."""
    first = FirstToken(1 + len(bank), pair)
    table = generate(lm, prompts, bank, max_new_tokens=1, first_logits=first.take, progress=False)
    found: dict[Any, list[float]] = {}
    for i, c in enumerate(table):
        found.setdefault(c.feature, []).append(first.contrast[i])
    return [mean(found[key]) for key in (None, *range(len(bank)))]


def _over(rows: Sequence[Row], way: str, number: int) -> tuple[float | None, float | None]:
    """Mean and standard error over shuffles."""
    values = [row["test"] for row in rows if (row["way"], row["number"]) == (way, number)]
    return (mean(values) if values else None), (stdev(values) / len(values) ** 0.5 if len(values) > 1 else None)
