"""One algorithm a file; each a frozen configuration with the same face."""

from .base import Direct, Iterative, Method
from .exponential import Exponential
from .linear import Linear, ProjectedLinear, Random
from .quadratic import Quadratic

#: The command line's names.
METHODS: dict[str, type[Method]] = {
    "linear": Linear,
    "projected": ProjectedLinear,
    "quadratic": Quadratic,
    "exponential": Exponential,
    "random": Random,
}

__all__ = ["METHODS", "Direct", "Exponential", "Iterative", "Linear", "Method", "ProjectedLinear", "Quadratic", "Random"]
