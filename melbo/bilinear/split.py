"""The response to steering by αs as a polynomial in α, and checks of what it is computed from."""

from typing import NamedTuple

import torch
from torch import Tensor

from melbo.errors import MelboError

_PRECISIONS = (torch.float32, torch.float64)


class Split(NamedTuple):
    """Terms of y(x + αs) = base + α·cross + α²·self, each ``[k, d_out]``.

    Attributes:
        base: y(x), the output without steering.
        cross: Term of first order, which needs both x and s.
        self: Term of second order, which needs s alone.
    """

    base: Tensor
    cross: Tensor
    self: Tensor

    def at(self, alpha: float) -> Tensor:
        """Sum of the three terms at one α, ``[k, d_out]``."""
        base, cross, own = self
        return base + alpha * cross + alpha**2 * own


def check_weights(**weights: Tensor) -> None:
    """Refuse weights that no exact split can be computed from.

    Args:
        **weights: Weights by their names in messages, matrices or biases.

    Raises:
        MelboError: A weight is not finite, or they differ in precision or device, or are in half
            precision.
    """
    first = next(iter(weights.values()))
    for name, weight in weights.items():
        if weight.dtype not in _PRECISIONS:
            raise MelboError(
                f"{name} is in {_plain(weight.dtype)}: expected float32 or float64, "
                "convert the weights first"
            )
        if (weight.dtype, weight.device) != (first.dtype, first.device):
            raise MelboError(
                f"{name} is in {_plain(weight.dtype)} on {weight.device}, "
                f"other weights in {_plain(first.dtype)} on {first.device}: make them alike"
            )
        if not torch.isfinite(weight).all():
            raise MelboError(f"{name} has values that are not finite: expected finite weights")


def rows_like(weight: Tensor, width: int, **rows: Tensor) -> list[Tensor]:
    """Rows in the precision and on the device of a weight, each ``[k, width]``.

    Args:
        weight: A weight of the layer.
        width: Width that the rows have to have.
        **rows: Rows by their names in messages. One row goes with any number of others.

    Raises:
        MelboError: Rows have another shape, are not finite, or their numbers do not fit.
    """
    for name, each in rows.items():
        if each.ndim != 2 or each.shape[1] != width or not len(each):
            raise MelboError(
                f"{name} has shape {list(each.shape)}: expected rows [k, {width}], "
                "the width that the layer reads"
            )
        # in the precision of the layer, where a large number may be none
        if not torch.isfinite(each.to(weight)).all():
            raise MelboError(f"{name} has values that are not finite: expected finite rows")
    lengths = {len(each) for each in rows.values()} - {1}
    if len(lengths) > 1:
        told = " and ".join(f"{len(each)} rows of {name}" for name, each in rows.items())
        raise MelboError(f"got {told}: expected as many of each, or one that goes with all")
    most = max(len(each) for each in rows.values())
    return [each.to(weight).expand(most, -1) for each in rows.values()]


def vector_like(weight: Tensor, width: int, name: str, vector: Tensor) -> Tensor:
    """A vector in the precision and on the device of a weight, ``[width]``.

    Args:
        weight: A weight of the layer.
        width: Width that the vector has to have.
        name: Name of the vector in messages.
        vector: The vector.

    Raises:
        MelboError: It has another shape, or is not finite.
    """
    if vector.shape != (width,):
        raise MelboError(
            f"{name} has shape {list(vector.shape)}: expected one vector [{width}] for this layer"
        )
    vector = vector.to(weight)
    if not torch.isfinite(vector).all():
        raise MelboError(f"{name} has values that are not finite: expected a finite vector")
    return vector


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
