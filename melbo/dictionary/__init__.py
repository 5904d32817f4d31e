"""Sparse dictionaries of activations (sparse autoencoders), and the geometry of their directions.

See docs/dictionaries.md.
"""

from melbo.dictionary.base import Dictionary
from melbo.dictionary.gated import Gated
from melbo.dictionary.geometry import (
    Hubs,
    neighbour_cosines,
    neighbour_hubs,
    orthogonality_penalty,
)
from melbo.dictionary.relu import ReLU
from melbo.dictionary.rescale_and_shift import RescaleAndShift
from melbo.dictionary.saved import load, save
from melbo.dictionary.stepless import Stepless
from melbo.dictionary.superposition import (
    capacity,
    interference,
    measured_interference,
    welch_floor,
    worst_case_capacity,
)
from melbo.dictionary.top_k import TopK

__all__ = [
    "Dictionary",
    "Gated",
    "Hubs",
    "ReLU",
    "RescaleAndShift",
    "Stepless",
    "TopK",
    "capacity",
    "interference",
    "load",
    "measured_interference",
    "neighbour_cosines",
    "neighbour_hubs",
    "orthogonality_penalty",
    "save",
    "welch_floor",
    "worst_case_capacity",
]
