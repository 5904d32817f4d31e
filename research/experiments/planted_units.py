"""Planted units: hidden units of a bilinear layer, found again by fits of its response."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from melbo import fit
from melbo.bilinear import Bilinear
from melbo.evaluation.plot import blank, png
from melbo.evaluation.tables import cell, markdown
from melbo.maths.linalg import random_rows, unit
from melbo.maths.statistics import mean
from melbo.methods import Linear, Quadratic
from melbo.records import Row
from research.experiments.base import VERSION, Experiment

_KINDS = {"squares": "L = R", "products": "L, R independent"}
_POINTS = ("zero", "activations")
_METHODS = ("quadratic", "linear", "random")


@dataclass(frozen=True, kw_only=True)
class PlantedUnits(Experiment):
    """Layers with planted units × the activation that is steered × seeds.

    Attributes:
        width: Width d of the layer.
        units: Number of hidden units.
        seeds: Number of layers.
        sweeps: Sweeps of the quadratic fit at most.
        norm: Norm of the activation, where it is not zero.
    """

    question: ClassVar[str] = "Does a fit find the hidden units of a bilinear layer?"
    varied: ClassVar[tuple[str, ...]] = ("seeds",)
    width: int
    units: int
    seeds: int
    sweeps: int
    norm: float

    def check(self) -> None:
        """Take any settings of the right kind."""

    @property
    def cases(self) -> list[Row]:
        """One case for a layer and an activation."""
        key = {"version": VERSION, "settings": self.settings}
        return [
            {**key, "units": kind, "at": point, "seed": seed}
            for kind in _KINDS
            for point in _POINTS
            for seed in range(self.seeds)
        ]

    def prepare(self) -> None:
        """Make nothing: layers are drawn case by case."""

    def measure(self, ready: None, case: Row) -> Row:
        """Mean over planted directions of the best |cos| with what each method finds."""
        generator = torch.Generator().manual_seed(case["seed"])
        like = torch.zeros(0, dtype=torch.float64)
        L, R, U = (random_rows(self.units, self.width, generator, like) for _ in range(3))
        x = self.norm * random_rows(1, self.width, generator, like)
        # (l·θ)(r·θ) = ¼[((l + r)·θ)² − ((l − r)·θ)²]: two factors for a product, one for a square
        truth = L if case["units"] == "squares" else torch.cat([unit(L + R), unit(L - R)])
        layer = Bilinear(L, L if case["units"] == "squares" else R, U.T)
        toy, most = layer.map(x if case["at"] == "activations" else None), len(truth)
        methods = {
            "quadratic": Quadratic(most, 1.0, max_steps=self.sweeps, tol=1e-9),
            "linear": Linear(most, 1.0),
        }
        found = {
            name: fit(toy, method, seed=case["seed"], progress=False).features.V
            for name, method in methods.items()
        }
        found["random"] = random_rows(most, self.width, generator, like)
        best = {name: (truth @ V.to(truth).T).abs().amax(1) for name, V in found.items()}
        return {name: cosines.mean().item() for name, cosines in best.items()}

    def table(self, rows: Sequence[Row]) -> str:
        """Mean best |cos| with the planted directions: mean ± standard error over seeds."""
        lines = [
            [title, point, *(cell(_values(rows, kind, point, name)) for name in _METHODS)]
            for kind, title in _KINDS.items()
            for point in _POINTS
        ]
        note = f"d = {self.width}, {self.units} hidden units, {self.seeds} seeds."
        return markdown(["planted", "steered at", *_METHODS], lines) + f"\n{note}\n"

    def picture(self, rows: Sequence[Row]) -> bytes:
        """The same, drawn."""
        canvas, axes = blank(3.2)
        places = [(kind, point) for kind in _KINDS for point in _POINTS]
        for i, name in enumerate(_METHODS):
            values = [_values(rows, *place, name) for place in places]
            heights = [mean(some) if some else 0.0 for some in values]
            axes.bar([k + 0.27 * (i - 1) for k in range(len(places))], heights, 0.25, label=name)
        labels = [f"{_KINDS[kind]}\n{point}" for kind, point in places]
        axes.set_xticks(range(len(places)), labels, fontsize=7)
        axes.set(ylabel="mean best |cos|", ylim=(0, 1))
        return png(canvas)


def _values(rows: Sequence[Row], kind: str, point: str, name: str) -> list[float]:
    return [row[name] for row in rows if (row["units"], row["at"]) == (kind, point)]
