"""The matrices that write to the residual stream, found by what blocks do with their products and not by their names.

What a block adds to the stream, h_out − h_in, is a sum of outputs of modules inside it; which of them, least squares tells. Where a norm stands
between a matrix and the stream (Gemma 2 and 3, OLMo 2), the norm is the summand and the matrix is what feeds it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .errors import MelboError
from .model import LanguageModel
from .slice import Shared

_EXPERTS = ("down_proj", "w2")  # what the output matrices of a mixture's experts are called
_MOST = 8  # summands of a block


@dataclass(frozen=True)
class Writer:
    """One matrix (or a stack of them, one an expert) whose product is added to the stream.

    Attributes:
        block: Index of the block; −1 for an embedding.
        name: Dotted name of the matrix in the model.
        module: The module that holds it.
        weight: The matrix.
        axis: Which of its axes is the stream's.
        bias: What is added to the product, its last axis the stream's, or None.
        gain: Where a norm y ↦ g ⊙ y / rms(y) stands between product and stream, its g ``[d]`` up to a factor.
    """

    block: int
    name: str
    module: nn.Module
    weight: Tensor
    axis: int
    bias: Tensor | None
    gain: Tensor | None = None


def writers(lm: LanguageModel) -> list[Writer]:
    """Those of every block, in the order in which they run.

    Raises:
        MelboError: A model in half precision, whose rounding hides what a block adds; or what a block adds is not a sum of its matrices'
            products (names what was found).
    """
    if lm.dtype not in (torch.float32, torch.float64):
        raise MelboError(f"{lm.name} is in {str(lm.dtype).removeprefix('torch.')}: its writing matrices can be told in float32 only; load it in that")
    names = {id(p): name for name, p in lm.model.named_parameters()}
    ids = torch.arange(1, 9)[None]
    part = lm.capture(ids, torch.ones_like(ids, dtype=torch.bool), 0, lm.depth)
    hidden, adapt = part.hidden, part.spread(part.hidden)
    shared: Shared = {}
    found: list[Writer] = []
    for call in part.calls:
        where = f"block {call.index} of {lm.name}"
        with _watch(call.block, hidden.shape) as passed, torch.no_grad():
            after = call(hidden, adapt, shared)
        for module in _summands(passed, after - hidden, where):
            found += _matrices(module, passed, call.index, names, where)
        hidden = after
    return found


def embeddings(lm: LanguageModel) -> list[Writer]:
    """Those of tokens and positions."""
    names = {id(p): name for name, p in lm.model.named_parameters()}
    tables = [m for m in lm.model.modules() if isinstance(m, nn.Embedding) and m.embedding_dim == lm.width]
    return [Writer(-1, names[id(m.weight)], m, m.weight, 1, None) for m in tables]


_Passed = dict[nn.Module, tuple[Tensor, Tensor]]  # module -> what went in and what came out, [T, d] each


@contextmanager
def _watch(block: nn.Module, shape: torch.Size) -> Iterator[_Passed]:
    """What passes through the modules of a block on the way to something of the stream's shape, those that finish first first."""
    passed: _Passed = {}

    def note(module: nn.Module, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        out = out[0] if isinstance(out, tuple) else out
        if isinstance(out, Tensor) and out.numel() == shape.numel() and out.shape[-1] == shape[-1]:
            entered = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), out)
            entered = entered if entered.numel() == out.numel() else out
            # copies, because some blocks add up in place
            passed.setdefault(module, (_copy(entered), _copy(out)))

    handles = [m.register_forward_hook(note, with_kwargs=True) for m in block.modules() if m is not block]
    try:
        yield passed
    finally:
        for handle in handles:
            handle.remove()


def _copy(hidden: Tensor) -> Tensor:
    return hidden.to(torch.float64, copy=True).flatten(0, -2)


def _summands(passed: _Passed, added: Tensor, where: str) -> list[nn.Module]:
    """The modules whose outputs add up to what the block adds, each times a number."""
    modules: list[nn.Module] = []
    for module, (_, out) in passed.items():  # of those that pass a thing on unchanged, the first
        if not any(torch.equal(out, passed[m][1]) for m in modules):
            modules.append(module)
    y = added.double().flatten()
    X = torch.stack([passed[m][1].flatten() for m in modules], 1) if modules else y.new_zeros(len(y), 0)
    chosen: list[int] = []
    left = y
    while left.norm() > 1e-4 * y.norm():  # matching pursuit; a sum of few has a single solution, least squares on all of them may not
        score = (X.T @ left).abs() / X.norm(dim=0).clamp_min(1e-30)
        score[chosen] = -1
        if len(chosen) == len(modules) or len(chosen) == _MOST:
            names = ", ".join(sorted({type(m).__name__ for m in modules}))
            raise MelboError(f"what {where} adds to the stream is not a sum of outputs of its modules ({names}): it cannot be edited")
        chosen.append(int(score.argmax()))
        coefficients = torch.linalg.lstsq(X[:, chosen], y[:, None]).solution
        left = y - (X[:, chosen] @ coefficients)[:, 0]
    needed = coefficients[:, 0].abs() * X[:, chosen].norm(dim=0) > 1e-3 * y.norm()
    return [modules[i] for i in sorted(i for i, keep in zip(chosen, needed, strict=True) if keep)]


def _matrices(module: nn.Module, passed: _Passed, block: int, names: dict[int, str], where: str) -> list[Writer]:
    """The matrices behind a summand."""
    if isinstance(module, (nn.Linear, Conv1D)):
        axis = 0 if isinstance(module, nn.Linear) else 1
        return [Writer(block, names[id(module.weight)], module, module.weight, axis, module.bias)]
    entered, out = passed[module]
    feeding = [m for m, (_, y) in passed.items() if m is not module and torch.equal(y, entered)]
    if feeding and not list(module.children()):
        gain = _gain(entered, out)
        if gain is not None:
            return [Writer(w.block, w.name, w.module, w.weight, w.axis, w.bias, gain) for w in _matrices(feeding[0], passed, block, names, where)]
    d = out.shape[-1]
    found = []
    for holder in module.modules():
        for name, p in holder.named_parameters(recurse=False):
            matrix = names[id(p)]
            if any(part in matrix for part in _EXPERTS) and p.ndim >= 2 and d in p.shape[-2:] and "bias" not in name:
                transposed = isinstance(holder, Conv1D) or getattr(holder, "is_transposed", False)
                axis = p.ndim - (1 if transposed else 2)
                found.append(Writer(block, matrix, holder, p, axis, getattr(holder, f"{name}_bias", getattr(holder, "bias", None))))
    if not found:
        raise MelboError(f"{where} adds the output of {type(module).__name__} to the stream, which is no matrix: it cannot be edited")
    return found


def _gain(entered: Tensor, out: Tensor) -> Tensor | None:
    """The g ``[d]``, up to a factor, if ``out`` is g ⊙ x / rms(x) of every x that entered; None if it is not."""
    each = torch.nn.functional.normalize(out / torch.where(entered == 0, torch.inf, entered), dim=-1)  # [T, d]
    g = each.mean(0)
    return g if (each - g).norm(dim=-1).max() < 1e-3 * g.norm() else None
