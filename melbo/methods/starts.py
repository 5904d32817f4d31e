"""Directions that iterative methods start from."""

import torch
from torch import Tensor

from melbo.maps.jacobian import Jacobian
from melbo.maps.smooth import SmoothMap
from melbo.maths.linalg import complete, random_rows, require_finite


def projected_start(
    map: SmoothMap, m: int, generator: torch.Generator, num_projections: int = 32
) -> Tensor:
    """Right singular vectors of W·J, completed at random, ``[m, d_source]``.

    Args:
        map: Δ.
        m: Number of directions.
        generator: Source of randomness.
        num_projections: Number of rows of W, which are random unit output directions.

    Raises:
        MelboError: The Jacobian is not finite.
    """
    W = random_rows(min(num_projections, map.d_target), map.d_target, generator)
    pulled = require_finite(Jacobian(map).rmatmat(W.to(map.device, map.dtype)))
    V = torch.linalg.svd(pulled, full_matrices=False)[2]
    return complete(V, m, generator)
