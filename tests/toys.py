"""Directions, and maps whose derivatives or factors are known."""

import torch

from melbo import FunctionMap


def directions(k, d, seed=0, dtype=torch.float64):
    """``k`` random unit rows: incoherent, not orthogonal."""
    rows = torch.randn(k, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=-1).to(dtype)


def smooth(d_source=12, d_target=9, seed=0, chunk=1024):
    """A small map with every derivative: a tanh layer with the value at 0 taken off."""
    g = torch.Generator().manual_seed(seed)
    shapes = (d_source, 16), (16,), (16, d_target)
    A, b, C = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in shapes)
    base = torch.tanh(b) @ C

    def fn(theta):
        return torch.tanh(theta @ A + b) @ C - base

    return FunctionMap(fn, d_source, d_target, torch.float64, chunk)


def planted(V, U, response, dtype=torch.float64):
    """The map Δ(θ) = Σ response(⟨v_ℓ, θ⟩) u_ℓ."""
    return FunctionMap(lambda theta: response(theta @ V.T) @ U, V.shape[1], U.shape[1], dtype)


def recovery(truth, found, signed=False):
    """Best cosine of each true direction with a found one; |cos| unless ``signed``."""
    cosines = truth.to(found.dtype) @ found.T
    return (cosines if signed else cosines.abs()).max(1).values
