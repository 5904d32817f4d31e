"""One algorithm a file; each a frozen configuration with the same face."""

from melbo.methods.ascent import Alike, Melbo
from melbo.methods.base import Direct, Iterative, Method
from melbo.methods.exponential import CPE, Exponential
from melbo.methods.fixed import Given, Random
from melbo.methods.hessian import ObjectiveHessian
from melbo.methods.linear import Linear, ProjectedLinear
from melbo.methods.quadratic import Quadratic

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
