"""Methods, one algorithm a file: each is a frozen configuration that finds factors of a map."""

from melbo.methods.ascent import Alike, Melbo
from melbo.methods.base import Direct, Iterative, Method
from melbo.methods.exponential import CPE, Exponential
from melbo.methods.fixed import Given, Random
from melbo.methods.hessian import ObjectiveHessian
from melbo.methods.linear import Linear, ProjectedLinear
from melbo.methods.quadratic import Quadratic

#: Methods by their names on the command line.
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
    "CPE",
    "METHODS",
    "Alike",
    "Direct",
    "Exponential",
    "Given",
    "Iterative",
    "Linear",
    "Melbo",
    "Method",
    "ObjectiveHessian",
    "ProjectedLinear",
    "Quadratic",
    "Random",
]
