"""A model on the bench: what every check is given, and what a check says of a difference."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

import melbo
from melbo.models.language_model import LanguageModel
from research.compatibility.models import Subject

#: Prompts of several lengths, with a common beginning, and longer than any window.
PROMPTS = (
    (1, 20, 30, 40, 50, 60, 70, 80, 33),
    (1, 20, 30, 41, 51),
    (1, 20, 30, 24, 64, 54, 11),
)
#: Layer that is steered; targets are the output of the last block.
SOURCE = 1
#: Norm of a direction that is added, large beside the stream of the tiny models.
SCALE = 16.0


class Wrong(Exception):  # noqa: N818 (a verdict, not an error)
    """A check's result differs from that of its plain twin."""


@dataclass(frozen=True)
class Bench:
    """A model and what checks try on it.

    Attributes:
        subject: The model's description.
        lm: The model.
        folder: Empty folder for the files of one check.
    """

    subject: Subject
    lm: LanguageModel
    folder: Path

    @cached_property
    def prompts(self) -> melbo.Prompts:
        """The prompts, as maps take them."""
        return melbo.Prompts(tuple(f"prompt {i}" for i in range(len(PROMPTS))), PROMPTS)

    def directions(self, k: int, d: int | None = None) -> Tensor:
        """Random unit rows ``[k, d]``, of the width of the model if ``d`` is left out."""
        generator = torch.Generator().manual_seed(3)
        rows = torch.randn(k, d or self.lm.width, generator=generator, dtype=torch.float64)
        return torch.nn.functional.normalize(rows, dim=-1).to(self.lm.dtype)

    def same(self, found: Tensor, truth: Tensor, name: str, rounding: float = 0) -> None:
        """Refuse a result that differs from the truth by more than rounding.

        Args:
            found: The result.
            truth: The truth, of the same shape.
            name: Name of the result.
            rounding: Relative error that counts as rounding, if more than usual.

        Raises:
            Wrong: It does, or is of another shape.
        """
        if found.shape != truth.shape:
            raise Wrong(f"{name}: shape {tuple(found.shape)}, not {tuple(truth.shape)}")
        off = float((found - truth).norm() / truth.norm().clamp_min(1e-30))
        if not off <= max(self.subject.tolerance, rounding):
            raise Wrong(f"{name}: off by {off:.1e}")

    def differ(self, one: Tensor, two: Tensor, name: str) -> None:
        """Refuse two results that should differ and hardly do: a check that could not fail.

        Args:
            one: The one.
            two: The other.
            name: Name of what should make the difference.

        Raises:
            Wrong: They are the same but for rounding.
        """
        if not (one - two).norm() > 100 * self.subject.tolerance * two.norm():
            raise Wrong(f"{name} changes nothing")

    def equal(self, found: object, truth: object, name: str) -> None:
        """Refuse a result that is not exactly the truth.

        Raises:
            Wrong: It is not.
        """
        if found != truth:
            raise Wrong(f"{name}: {found}, not {truth}")
