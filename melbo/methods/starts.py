"""Starts."""

import torch
from torch import Tensor

from melbo.maps.jacobian import Jacobian
from melbo.maps.smooth import SmoothMap
from melbo.maths.linalg import complete, random_rows, unit
from melbo.maths.transcoder import Factors, fit_strengths


def first_order(map: SmoothMap, V: Tensor, U: Tensor | None, scale: float) -> Factors:
    """Factors of a linear transcoder with given directions; U = normalise(JV) where left out. b = R·uᵀJv."""
    JV = map.jvp(V)
    U = unit(JV) if U is None else U
    return fit_strengths(V, U, scale * (U * JV).sum(-1), "linear")


def projected_start(
    map: SmoothMap, m: int, generator: torch.Generator, num_projections: int = 32
) -> Tensor:
    """``m`` unit rows to start from: right singular vectors of W·J, completed at random."""
    W = random_rows(min(num_projections, map.d_target), map.d_target, generator).to(
        map.device, map.dtype
    )
    V = torch.linalg.svd(Jacobian(map).rmatmat(W), full_matrices=False)[2]
    return complete(V, m, generator)
