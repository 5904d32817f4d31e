"""Pictures of dictionaries: neighbours of their directions, and matches with a run's."""

from collections.abc import Mapping

import torch
from torch import Tensor

from melbo.dictionary.matching import Matches
from melbo.dictionary.neighbours import Neighbours
from melbo.evaluation.plot import blank, png

_BINS = 60


def neighbours_picture(found: Neighbours) -> bytes:
    """A PNG: how the k-th largest cosines are spread, with those of random directions dotted."""
    canvas, axes = blank()
    for i, k in enumerate(found.k):
        label = "nearest" if k == 1 else f"{k}th nearest"
        _outline(axes, found.cosines[:, i], f"C{i}", "-", label)
        _outline(axes, found.random[:, i], f"C{i}", ":", f"{label}, random")
    axes.set(xlabel="cosine", ylabel="density", xlim=(0, 1))
    return png(canvas)


def matches_picture(found: Mapping[str, Matches]) -> bytes:
    """A PNG: the best |cos| of directions with a dictionary, with that of nulls dotted.

    Args:
        found: Matches by the name of the directions.
    """
    canvas, axes = blank()
    for i, (name, matches) in enumerate(found.items()):
        _outline(axes, matches.cosine, f"C{i}", "-", name)
        for style, (null, values) in zip((":", "--"), matches.nulls.items(), strict=True):
            _outline(axes, values.flatten(), f"C{i}", style, f"{name}, {null}")
    axes.set(xlabel="best |cos|", ylabel="density", xlim=(0, 1))
    return png(canvas)


def _outline(axes: object, values: Tensor, colour: str, style: str, label: str) -> None:
    """Draw a histogram of values from 0 to 1 as a line."""
    counts = torch.histc(values.float(), _BINS, 0, 1)
    middles = (torch.arange(_BINS) + 0.5) / _BINS
    density = counts / counts.sum().clamp_min(1) * _BINS
    axes.plot(middles, density, color=colour, ls=style, lw=1.4, label=label)  # type: ignore[attr-defined]
