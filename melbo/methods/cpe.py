"""Causal Perturbative Elicitation: the exponential transcoder of factors in weight space (METHOD §3)."""

from dataclasses import dataclass
from typing import Literal

from ..linalg import Orthogonalise
from .exponential import Exponential


@dataclass(frozen=True)
class CPE(Exponential):
    """Orthogonalised gradient iteration with the defaults of CPE (arXiv 2606.29604), for an `AdapterMap`: which blocks is the map's to say.

    Attributes:
        num_factors: m.
        scale: R, the norm of what a factor adds to each matrix.
        max_steps: Sweeps at most.
        tol: See `melbo.iterate`.
        orthogonalise: On the flattened factors.
        start: ``"backward"``: gradients of random output directions.
        beta: See `Exponential`.
    """

    max_steps: int = 30
    orthogonalise: Orthogonalise = "soft"
    start: Literal["projected", "backward"] = "backward"
