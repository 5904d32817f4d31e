"""Layers whose response to steering is a polynomial in α, with weights that say what it is."""

from melbo.bilinear.gate import GatedMLP
from melbo.bilinear.gated import from_block, from_module, gated_mlp
from melbo.bilinear.layer import Bilinear, CrossMap, Interaction
from melbo.bilinear.relu import ReluMLP
from melbo.bilinear.split import Split

__all__ = [
    "Bilinear",
    "CrossMap",
    "GatedMLP",
    "Interaction",
    "ReluMLP",
    "Split",
    "from_block",
    "from_module",
    "gated_mlp",
]
