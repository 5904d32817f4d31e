"""The matrices that write to the residual stream, found by what blocks do with their products and not by their names.

What a block adds to the stream, h_out − h_in, is a sum of outputs of modules inside it; which of them, least squares tells. Where a norm stands
between a matrix and the stream (Gemma 2 and 3, OLMo 2), the norm is the summand and the matrix is what feeds it. Half precision would round
what a block adds to noise: there, a copy of one block at a time is looked at in single precision.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from melbo.errors import MelboError
from melbo.models.language_model import LanguageModel
from melbo.models.replay import Call, Path, Run, Shared, Slice, call_block

_EXPERTS = ("down_proj", "w2")  # what the output matrices of a mixture's experts are called
_MOST = 8  # summands of a block

_Passed = dict[
    nn.Module, tuple[Tensor, Tensor]
]  # module -> what went in and what came out, [T, d] each


@dataclass(frozen=True)
class OutputMatrix:
    """One matrix (or a stack of them, one an expert) whose product is added to the stream.

    Attributes:
        block: Index of the block; −1 for an embedding.
        name: Dotted name of the matrix in the model.
        module: The module that holds it.
        weight: The matrix.
        axis: Which of its axes is the stream's.
        bias: What is added to the product, its last axis the stream's, or None.
        summand: The module whose output is added: ``module`` itself, the norm behind it, or the mixture that the matrix is part of.
        factor: What the block multiplies that output by before it adds it, 1 in most models (not looked for in embeddings).
        gain: Where a norm y ↦ g ⊙ y / rms(y) stands between product and stream, its g ``[d]`` up to a factor.
    """

    block: int
    name: str
    module: nn.Module
    weight: Tensor
    axis: int
    bias: Tensor | None
    summand: nn.Module
    factor: float = 1.0
    gain: Tensor | None = None


def output_matrices(lm: LanguageModel, block: int | None = None) -> list[OutputMatrix]:
    """Those of every block, or of one, in the order in which they run. In half precision it takes the memory of one block in single precision.

    Raises:
        MelboError: What a block adds is not a sum of its matrices' products (names what was found).
    """
    part = _on_a_few_tokens(lm, *((0, lm.depth) if block is None else (block, block + 1)))
    hidden = _precise(part.hidden)
    shared: Shared = {}
    found: list[OutputMatrix] = []
    for call in part.calls:
        passed, after = _look(call, hidden, shared)
        found += _writers(lm, call.index, passed, hidden, after)
        hidden = after
    return found


def attention_output(lm: LanguageModel, block: int) -> OutputMatrix:
    """The matrix by which a block writes what it gathered from other tokens: attention's output matrix, or that of a convolution or recurrence.

    It is the first writer of the block whose product at the last token changes when all tokens before that change at the block's input. The
    first, because where the MLP reads what attention has written, its product changes as well.

    Args:
        lm: The model.
        block: Index of the block, 0 … depth − 1.

    Raises:
        MelboError: An index out of range, a block without such a matrix, or one whose writers are not found (see `writers`).
    """
    if not 0 <= block < lm.depth:
        raise MelboError(
            f"block is {block}, but {lm.name} has {lm.depth} blocks: expected 0 to {lm.depth - 1}"
        )
    part = _on_a_few_tokens(lm, block, block + 1)
    hidden = _precise(part.hidden)
    others = hidden.clone()
    others[:, :-1] = others[:, :-1].roll(1, -1)  # other directions of the same norms
    (passed, after), (changed, _) = (_look(part.calls[0], h, {}) for h in (hidden, others))
    for w in _writers(lm, block, passed, hidden, after):
        was, now = (p[w.summand][1][-1] for p in (passed, changed))  # at the last token
        if (now - was).norm() > 1e-4 * was.norm():
            return w
    raise MelboError(
        f"block {block} of {lm.name} writes nothing that depends on other tokens: expected attention; choose another block"
    )


def added_by(writer: OutputMatrix) -> Run:
    """How to call a block for what ``writer`` adds to the stream in it, and not for the stream that leaves it (see `melbo.slice.call_block`).

    The block runs no further than to there.
    """

    def run(
        block: nn.Module, by_name: bool, hidden: Tensor, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Tensor:
        taken: list[Tensor] = []

        def take(module: nn.Module, args: tuple, out: Any) -> None:
            taken.append(_tensor(out))
            raise _Added

        handle = writer.summand.register_forward_hook(take)
        try:
            with suppress(_Added):
                call_block(block, by_name, hidden, args, kwargs)
        finally:
            handle.remove()
        return writer.factor * taken[0].reshape(hidden.shape)

    return run


def embeddings(lm: LanguageModel) -> list[OutputMatrix]:
    """Those of tokens and positions."""
    names = {id(p): name for name, p in lm.model.named_parameters()}
    tables = [
        m for m in lm.model.modules() if isinstance(m, nn.Embedding) and m.embedding_dim == lm.width
    ]
    return [OutputMatrix(-1, names[id(m.weight)], m, m.weight, 1, None, m) for m in tables]


class _Added(Exception):  # noqa: N818 (a signal, not an error)
    """What the block adds is known; nothing after that is needed."""


def _on_a_few_tokens(lm: LanguageModel, source: int, target: int) -> Slice:
    ids = torch.arange(1, 9)[None]
    return lm.capture(ids, torch.ones_like(ids, dtype=torch.bool), source, target)


def _precise(tensor: Tensor) -> Tensor:
    """In single precision at least."""
    return (
        tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        if tensor.is_floating_point()
        else tensor
    )


def _precise_argument(path: Path, tensor: Tensor) -> Tensor:
    return _precise(tensor)


def _look(call: Call, hidden: Tensor, shared: Shared) -> tuple[_Passed, Tensor]:
    """What passes through the modules of a block on ``hidden``, and the stream that leaves it, in single precision at least."""
    block = call.block
    if any(p.dtype in (torch.bfloat16, torch.float16) for p in block.parameters()):
        block = deepcopy(block).float()
    with _watch(call.block, block, hidden.shape) as passed, torch.no_grad():
        after = replace(call, block=block)(hidden, _precise_argument, shared)
    return passed, after


def _writers(
    lm: LanguageModel, block: int, passed: _Passed, hidden: Tensor, after: Tensor
) -> Iterator[OutputMatrix]:
    """Those of one block, in the order in which they run."""
    names = {id(p): name for name, p in lm.model.named_parameters()}
    where = f"block {block} of {lm.name}"
    for module, factor in _summands(passed, hidden, after, where).items():
        for writer in _matrices(module, passed, block, names, where):
            yield replace(writer, factor=factor)


@contextmanager
def _watch(block: nn.Module, runs: nn.Module, shape: torch.Size) -> Iterator[_Passed]:
    """What passes through the modules of a block on the way to something of the stream's shape, those that finish first first.

    ``runs`` is the block itself or a copy, which runs in its stead.
    """
    passed: _Passed = {}

    def note(
        module: nn.Module, running: nn.Module, args: tuple, kwargs: dict[str, Any], out: Any
    ) -> None:
        out = _tensor(out)
        if isinstance(out, Tensor) and out.numel() == shape.numel() and out.shape[-1] == shape[-1]:
            entered = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), out)
            entered = entered if entered.numel() == out.numel() else out
            # copies, because some blocks add up in place
            passed.setdefault(module, (_copy(entered), _copy(out)))

    modules = [(name, m) for name, m in block.named_modules() if m is not block]
    handles = [
        runs.get_submodule(name).register_forward_hook(partial(note, m), with_kwargs=True)
        for name, m in modules
    ]
    try:
        yield passed
    finally:
        for handle in handles:
            handle.remove()


def _tensor(out: Any) -> Any:
    return out[0] if isinstance(out, tuple) else out


def _copy(hidden: Tensor) -> Tensor:
    return hidden.to(torch.float64, copy=True).flatten(0, -2)


def _summands(passed: _Passed, hidden: Tensor, after: Tensor, where: str) -> dict[nn.Module, float]:
    """The modules whose outputs, each times a number, add up to what the block adds, and the numbers."""
    modules: list[nn.Module] = []
    for module, (_, out) in passed.items():  # of those that pass a thing on unchanged, the first
        if not any(torch.equal(out, passed[m][1]) for m in modules):
            modules.append(module)
    before, added = _copy(hidden), _copy(after) - _copy(hidden)
    # tokens count equally, whatever they weigh (an attention sink adds thousands of times more), those of which mostly rounding is left less
    rounding = 1e5 * torch.finfo(hidden.dtype).eps * before.norm(dim=-1, keepdim=True)
    weights = 1 / torch.maximum(added.norm(dim=-1, keepdim=True), rounding).clamp_min(
        1e-30
    )  # [T, 1]
    y = (weights * added).flatten()
    X = (
        torch.stack([(weights * passed[m][1]).flatten() for m in modules], 1)
        if modules
        else y.new_zeros(len(y), 0)
    )
    chosen: list[int] = []
    coefficients = y.new_zeros(0, 1)
    left = y
    while (
        left.norm() > 1e-4 * y.norm()
    ):  # matching pursuit; a sum of few has a single solution, least squares on all of them may not
        score = (X.T @ left).abs() / X.norm(dim=0).clamp_min(1e-30)
        score[chosen] = -1
        if len(chosen) == len(modules) or len(chosen) == _MOST:
            names = ", ".join(sorted({type(m).__name__ for m in modules}))
            raise MelboError(
                f"what {where} adds to the stream is not a sum of outputs of its modules ({names}): it can be neither edited nor read"
            )
        chosen.append(int(score.argmax()))
        coefficients = torch.linalg.lstsq(X[:, chosen], y[:, None]).solution
        left = y - (X[:, chosen] @ coefficients)[:, 0]
    sizes = coefficients[:, 0].abs() * X[:, chosen].norm(dim=0)
    needed = {
        i: c.item()
        for i, c, size in zip(chosen, coefficients[:, 0], sizes, strict=True)
        if size > 1e-3 * y.norm()
    }
    return {
        modules[i]: 1.0 if abs(c - 1) < 1e-4 else c for i, c in sorted(needed.items())
    }  # a plain sum is one exactly


def _matrices(
    module: nn.Module, passed: _Passed, block: int, names: dict[int, str], where: str
) -> list[OutputMatrix]:
    """The matrices behind a summand."""
    if isinstance(module, (nn.Linear, Conv1D)):
        axis = 0 if isinstance(module, nn.Linear) else 1
        return [
            OutputMatrix(
                block, names[id(module.weight)], module, module.weight, axis, module.bias, module
            )
        ]
    entered, out = passed[module]
    feeding = [m for m, (_, y) in passed.items() if m is not module and torch.equal(y, entered)]
    if feeding and not list(module.children()):
        gain = _gain(entered, out)
        if gain is not None:
            return [
                replace(w, summand=module, gain=gain)
                for w in _matrices(feeding[0], passed, block, names, where)
            ]
    d = out.shape[-1]
    found = []
    for holder in module.modules():
        for name, p in holder.named_parameters(recurse=False):
            matrix = names[id(p)]
            if (
                any(part in matrix for part in _EXPERTS)
                and p.ndim >= 2
                and d in p.shape[-2:]
                and "bias" not in name
            ):
                transposed = isinstance(holder, Conv1D) or getattr(holder, "is_transposed", False)
                axis = p.ndim - (1 if transposed else 2)
                bias = getattr(holder, f"{name}_bias", getattr(holder, "bias", None))
                found.append(OutputMatrix(block, matrix, holder, p, axis, bias, module))
    if not found:
        raise MelboError(
            f"{where} adds the output of {type(module).__name__} to the stream, which is no matrix: it can be neither edited nor read"
        )
    return found


def _gain(entered: Tensor, out: Tensor) -> Tensor | None:
    """The g ``[d]``, up to a factor, if ``out`` is g ⊙ x / rms(x) of every x that entered; None if it is not."""
    each = torch.nn.functional.normalize(
        out / torch.where(entered == 0, torch.inf, entered), dim=-1
    )  # [T, d]
    g = each.mean(0)
    return g if (each - g).norm(dim=-1).max() < 1e-3 * g.norm() else None
