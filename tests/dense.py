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
        return torch.func.jacrev(torch.func.jacrev(_single(map)))(torch.zeros(map.d_source, dtype=map.dtype))


def _single(map):
    """The map of one direction, all pieces put together."""

    def fn(theta):
        parts = [p.fn(theta[None])[0] for p in map.pieces]
        same = all(p.columns == map.pieces[0].columns for p in map.pieces)
        return torch.stack(parts).sum(0) if same else torch.cat(parts)

    return fn
