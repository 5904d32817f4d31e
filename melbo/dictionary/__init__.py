"""Sparse dictionaries of activations (sparse autoencoders), and the geometry of their directions.

See docs/dictionaries.md.
"""

from melbo.dictionary.activations import ActivationStream, Contexts
from melbo.dictionary.architectures import ARCHITECTURES, make
from melbo.dictionary.base import Dictionary
from melbo.dictionary.gated import Gated
from melbo.dictionary.geometry import (
    Hubs,
    neighbour_cosines,
    neighbour_hubs,
    orthogonality_penalty,
)
from melbo.dictionary.matching import best_matches
from melbo.dictionary.quality import measure
from melbo.dictionary.relu import ReLU
from melbo.dictionary.rescale_and_shift import RescaleAndShift
from melbo.dictionary.saved import load, save
from melbo.dictionary.splice import Splice, losses
from melbo.dictionary.stepless import Stepless
from melbo.dictionary.superposition import (
    capacity,
    interference,
    measured_interference,
    welch_floor,
    worst_case_capacity,
)
from melbo.dictionary.top_k import TopK
from melbo.dictionary.training import Training, train

__all__ = [
    "ARCHITECTURES",
    "ActivationStream",
    "Contexts",
    "Dictionary",
    "Gated",
    "Hubs",
    "ReLU",
    "RescaleAndShift",
    "Splice",
    "Stepless",
    "TopK",
    "Training",
    "best_matches",
    "capacity",
    "interference",
    "load",
    "losses",
    "make",
    "measure",
    "measured_interference",
    "neighbour_cosines",
    "neighbour_hubs",
    "orthogonality_penalty",
    "save",
    "train",
    "welch_floor",
    "worst_case_capacity",
]
