"""One algorithm a file; each a frozen configuration with the same face."""

from .ascent import Alike, Melbo
from .base import Direct, Iterative, Method
from .cpe import CPE
from .exponential import Exponential
from .given import Given
from .hessian import ObjectiveHessian
from .linear import Linear, ProjectedLinear, Random
from .quadratic import Quadratic

#: The command line's names.
METHODS: dict[str, type[Method]] = {
    "linear": Linear,
    "projected": ProjectedLinear,
    "quadratic": Quadratic,
    "exponential": Exponential,
    "cpe": CPE,
    "melbo": Melbo,
    "hessian": ObjectiveHessian,
    "random": Random,
}

__all__ = [
    "CPE", "METHODS", "Alike", "Direct", "Exponential", "Given", "Iterative", "Linear", "Melbo", "Method",
    "ObjectiveHessian", "ProjectedLinear", "Quadratic", "Random",
]  # fmt: skip
