"""Derivatives written out with nested function transforms: slow twins of a map's oracles."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def jacobian(map):
    """J(0) by jacrev, ``[d_target, d_source]``."""
    with sdpa_kernel([SDPBackend.MATH]):
        return torch.func.jacrev(_single(map))(torch.zeros(map.d_source, dtype=map.dtype))


def hessian(map):
    """H(0) by jacrev∘jacrev, ``[d_target, d_source, d_source]``."""
    zero = torch.zeros(map.d_source, dtype=map.dtype)
    with sdpa_kernel([SDPBackend.MATH]):
        return torch.func.jacrev(torch.func.jacrev(_single(map)))(zero)


def _single(map):
    """The map as a function of one direction ``[d_source]``."""
    return lambda theta: response(map, theta[None])[0]


def response(map, theta):
    """Δ(θ) with its autograd graph, all pieces put together."""
    out = torch.zeros(len(theta), map.d_target, dtype=theta.dtype)
    for piece in map.pieces:
        out = out.index_add(1, torch.arange(map.d_target)[piece.columns], piece.fn(theta))
    return out
