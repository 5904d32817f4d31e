"""Output matrices of a mixture's experts, found by what the mixture computes.

An output matrix is linear in the result: where its weights for one coordinate of the stream change,
that coordinate of the result changes and no other. No name and no shape says so.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from melbo.models.weights.storage import is_plain

# for each module in a list, those in the same place of the list's other members
Alternatives = dict[nn.Module, tuple[nn.Module, ...]]


@dataclass(frozen=True)
class Mixture:
    """A module as it was called: the module that ran, and its arguments."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, changed: dict[str, Tensor]) -> Tensor:
        """Result ``[T, d]`` in double precision, with some of its parameters changed.

        Args:
            changed: New values of parameters, by their names in the module.
        """
        with torch.no_grad():
            out = torch.func.functional_call(self.module, changed, self.args, self.kwargs)
        first: Tensor = out[0] if isinstance(out, tuple) else out
        return first.double().flatten(0, -2)


def alternatives(block: nn.Module) -> Alternatives:
    """Modules of a block that lie in a list, such as its experts, and their like in the list.

    Args:
        block: The block.
    """
    found: Alternatives = {}
    for several in block.modules():
        if not isinstance(several, nn.ModuleList) or len(several) < 2:
            continue
        parts = [dict(member.named_modules()) for member in several]
        for own in parts:
            for name, module in own.items():
                others = (other.get(name) for other in parts if other is not own)
                found[module] = tuple(m for m in others if m is not None)
    return found


def expert_weights(mixture: Mixture | None, width: int) -> Iterator[tuple[str, int]]:
    """Names of a mixture's output matrices within it, and for each the axis of the stream.

    Matrices whose names differ in numbers alone belong together: an expert that no token chose is
    taken to be as the others are.

    Args:
        mixture: The mixture; none are found where it is None.
        width: Width of the stream.
    """
    if mixture is None:
        return
    families: dict[str, list[str]] = {}
    weights = dict(mixture.module.named_parameters())
    for name, p in weights.items():
        # biases go with their matrices
        matrix = p.ndim >= 2 and not name.endswith("bias")
        if matrix and is_plain(p) and width in p.shape[-2:]:
            families.setdefault(f"{re.sub(r'[0-9]+', '#', name)} {p.ndim}", []).append(name)
    if not families:
        return
    plain = mixture.run({})
    for names in families.values():
        some = weights[names[0]]
        for axis in (some.ndim - 2, some.ndim - 1):
            fits = [n for n in names if weights[n].shape[axis] == width]
            if fits and _writes(mixture, {n: weights[n] for n in fits}, axis, plain):
                yield from ((n, axis) for n in fits)
                break


def _writes(mixture: Mixture, weights: dict[str, Tensor], axis: int, plain: Tensor) -> bool:
    """Tell whether an axis of these weights is that of the result."""
    at = plain.shape[-1] // 2
    changed = {}
    for name, p in weights.items():
        changed[name] = p.detach().clone()
        generator = torch.Generator().manual_seed(0)
        size = p.shape[:axis] + p.shape[axis + 1 :]
        noise = torch.randn(size, generator=generator).to(p) * p.float().square().mean().sqrt()
        changed[name].select(axis, at).add_(noise.to(p.dtype))
    difference = mixture.run(changed) - plain
    whole = difference.norm()
    difference[:, at] = 0
    return bool(whole > 1e-6 * plain.norm()) and bool(difference.norm() < 1e-4 * whole)
