"""The Jacobian of a map at zero as a matrix known by its products."""

import torch
from torch import Tensor

from melbo.maps.smooth import SmoothMap


class Jacobian:
    """J(0) of a map, ``[d_target, d_source]``, never written out unless asked.

    On a map with ``concatenate=True`` this is the Jacobian stacked over prompts and tokens.

    Args:
        map: The map.
    """

    def __init__(self, map: SmoothMap) -> None:
        self.map = map
        self.shape = (map.d_target, map.d_source)

    def matmat(self, V: Tensor) -> Tensor:
        """Rows v ↦ Jv, ``[k, d_source] → [k, d_target]``."""
        return self.map.jvp(V)

    def rmatmat(self, U: Tensor) -> Tensor:
        """Rows u ↦ Jᵀu, ``[k, d_target] → [k, d_source]``."""
        return self.map.vjp(U)

    def to_dense(self) -> Tensor:
        """J written out ``[d_target, d_source]``, by products on its shorter side."""
        eye = torch.eye(min(self.shape), dtype=self.map.dtype, device=self.map.device)
        return self.rmatmat(eye) if self.shape[0] <= self.shape[1] else self.matmat(eye).T
