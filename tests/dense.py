"""Slow plain twins: derivatives written out with nested function transforms."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def jacobian(map):
    """J(0) ``[d_target, d_source]`` by jacrev."""
    with sdpa_kernel([SDPBackend.MATH]):
        return torch.func.jacrev(_single(map))(torch.zeros(map.d_source, dtype=map.dtype))


def hessian(map):
    """H(0) ``[d_target, d_source, d_source]`` by jacrev∘jacrev."""
    with sdpa_kernel([SDPBackend.MATH]):
        return torch.func.jacrev(torch.func.jacrev(_single(map)))(
            torch.zeros(map.d_source, dtype=map.dtype)
        )


def _single(map):
    """The map of one direction."""
    return lambda theta: response(map, theta[None])[0]


def response(map, theta):
    """Δ(θ) with its graph, all pieces put together."""
    out = torch.zeros(len(theta), map.d_target, dtype=theta.dtype)
    for piece in map.pieces:
        out = out.index_add(1, torch.arange(map.d_target)[piece.columns], piece.fn(theta))
    return out
