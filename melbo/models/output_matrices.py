"""The matrices that write to the residual stream, found by what blocks do and not by their names.

A block adds h_out − h_in to the stream, a sum of outputs of modules inside it; least squares tells
which of them. Where a norm stands between a matrix and the stream (Gemma 2 and 3, OLMo 2), the norm
is the summand, and the matrix is the module that feeds it. Half precision would round the sum to
noise: there, a copy of one block at a time is looked at in single precision.
"""

from collections.abc import Generator, Iterator, Sequence
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

_EXPERTS = ("down_proj", "w2")  # names of the output matrices of a mixture's experts
_MOST = 8  # summands of a block

# for each module, its input and its output, [T, d] each
_Passed = dict[nn.Module, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class OutputMatrix:
    """One matrix (or a stack of them, one for each expert) whose product is added to the stream.

    Attributes:
        block: Index of the block; −1 for an embedding.
        name: Dotted name of the matrix in the model.
        module: Module that holds the matrix.
        weight: The matrix.
        axis: Axis of the matrix that is the stream's.
        bias: Bias of the product, its last axis the stream's, or None.
        summand: Module whose output is added: ``module`` itself, the norm behind it, or the mixture
            that the matrix is part of.
        factor: Number by which the block multiplies that output before it adds it, 1 in most models
            (not looked for in embeddings).
        gain: The g ``[d]``, up to a factor, of a norm y ↦ g ⊙ y / rms(y) that stands between
            product and stream; None without one.
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
    """Find the output matrices of every block, or of one, in the order in which they run.

    In half precision this takes the memory of one block in single precision.

    Args:
        lm: The model.
        block: Index of the block; all blocks if left out.

    Raises:
        MelboError: A block does not add a sum of its matrices' products; names what was found.
    """
    part = _on_a_few_tokens(lm, *((0, lm.depth) if block is None else (block, block + 1)))
    hidden = _precise(part.hidden)
    shared: Shared = {}
    found: list[OutputMatrix] = []
    for call in part.calls:
        passed, after = _look(call, hidden, shared)
        found += _matrices_of_block(lm, call.index, passed, hidden, after)
        hidden = after
    return found


def attention_output(lm: LanguageModel, block: int) -> OutputMatrix:
    """Find the output matrix of a block's attention, or of a convolution or recurrence instead.

    It is the first output matrix of the block whose product at the last token changes when all
    earlier tokens change at the block's input. Only the first counts, because where the MLP reads
    the attention's output, its product changes as well.

    Args:
        lm: The model.
        block: Index of the block, 0 … depth − 1.

    Raises:
        MelboError: The index is out of range, the block has no such matrix, or its output matrices
            are not found (see `output_matrices`).
    """
    if not 0 <= block < lm.depth:
        raise MelboError(
            f"block is {block}, but {lm.name} has {lm.depth} blocks: expected 0 to {lm.depth - 1}"
        )
    part = _on_a_few_tokens(lm, block, block + 1)
    hidden = _precise(part.hidden)
    others = hidden.clone()
    others[:, :-1] = others[:, :-1].roll(1, -1)  # other directions of the same norms
    passed, after = _look(part.calls[0], hidden, {})
    changed, _ = _look(part.calls[0], others, {})
    for matrix in _matrices_of_block(lm, block, passed, hidden, after):
        was, now = (p[matrix.summand][1][-1] for p in (passed, changed))  # at the last token
        if (now - was).norm() > 1e-4 * was.norm():
            return matrix
    raise MelboError(
        f"block {block} of {lm.name} writes nothing that depends on other tokens: "
        "expected attention; choose another block"
    )


def added_by(matrix: OutputMatrix) -> Run:
    """Make a stand-in for `call_block` that returns what a matrix adds to the stream.

    The block runs no further than to there, and the stream that leaves it is not computed.
    """

    def run(
        block: nn.Module, by_name: bool, hidden: Tensor, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Tensor:
        taken: list[Tensor] = []

        def take(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            taken.append(_tensor(out))
            raise _Added

        handle = matrix.summand.register_forward_hook(take)
        try:
            with suppress(_Added):
                call_block(block, by_name, hidden, args, kwargs)
        finally:
            handle.remove()
        return matrix.factor * taken[0].reshape(hidden.shape)

    return run


def embeddings(lm: LanguageModel) -> list[OutputMatrix]:
    """Find the embeddings of tokens and positions."""
    names = {id(p): name for name, p in lm.model.named_parameters()}
    tables = [
        m for m in lm.model.modules() if isinstance(m, nn.Embedding) and m.embedding_dim == lm.width
    ]
    return [OutputMatrix(-1, names[id(m.weight)], m, m.weight, 1, None, m) for m in tables]


class _Added(Exception):  # noqa: N818 (a signal, not an error)
    """The sum that the block adds is known; nothing after that is needed."""


def _on_a_few_tokens(lm: LanguageModel, source: int, target: int) -> Slice:
    ids = torch.arange(1, 9)[None]
    return lm.capture(ids, torch.ones_like(ids, dtype=torch.bool), source, target)


def _precise(tensor: Tensor) -> Tensor:
    """The tensor in single precision at least, if it holds floating-point numbers."""
    if not tensor.is_floating_point():
        return tensor
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _look(call: Call, hidden: Tensor, shared: Shared) -> tuple[_Passed, Tensor]:
    """Inputs and outputs of a block's modules on ``hidden``, and the stream that leaves the block.

    All of it is in single precision at least.
    """
    block = call.block
    if any(p.dtype in (torch.bfloat16, torch.float16) for p in block.parameters()):
        block = deepcopy(block).float()

    def precise(path: Path, tensor: Tensor) -> Tensor:
        return _precise(tensor)

    with _watch(call.block, block, hidden.shape) as passed, torch.no_grad():
        after = replace(call, block=block)(hidden, precise, shared)
    return passed, after


def _matrices_of_block(
    lm: LanguageModel, block: int, passed: _Passed, hidden: Tensor, after: Tensor
) -> Iterator[OutputMatrix]:
    """Output matrices of one block, in the order in which they run."""
    names = {id(p): name for name, p in lm.model.named_parameters()}
    where = f"block {block} of {lm.name}"
    for module, factor in _summands(passed, hidden, after, where).items():
        for matrix in _matrices_behind(module, passed, block, names, where):
            yield replace(matrix, factor=factor)


@contextmanager
def _watch(block: nn.Module, runs: nn.Module, shape: torch.Size) -> Generator[_Passed, None, None]:
    """Note the inputs and outputs of a block's modules whose output has the stream's shape.

    Modules are noted in the order in which they finish.

    Args:
        block: The block, whose modules are the keys of the result.
        runs: The block itself, or a copy that runs in its stead.
        shape: Shape of the stream.
    """
    passed: _Passed = {}

    def note(
        module: nn.Module,
        running: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Any,
    ) -> None:
        out = _tensor(out)
        if isinstance(out, Tensor) and out.numel() == shape.numel() and out.shape[-1] == shape[-1]:
            entered = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), out)
            entered = entered if entered.numel() == out.numel() else out
            # copies, because some blocks add up in place
            passed.setdefault(module, (_copy(entered), _copy(out)))

    handles = [
        runs.get_submodule(name).register_forward_hook(partial(note, module), with_kwargs=True)
        for name, module in block.named_modules()
        if module is not block
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
    """Modules whose outputs, each times a number, add up to what the block adds; and the numbers.

    Matching pursuit finds them: a sum of few has a single solution, where least squares on all of
    them may have many.

    Raises:
        MelboError: No few of them do.
    """
    modules: list[nn.Module] = []
    for module, (_, out) in passed.items():
        # modules that pass a tensor on unchanged count once
        if not any(torch.equal(out, passed[m][1]) for m in modules):
            modules.append(module)
    before, added = _copy(hidden), _copy(after) - _copy(hidden)
    # tokens count equally, however much is added to them (an attention sink gets thousands of times
    # more), and less where it is mostly rounding
    rounding = 1e5 * torch.finfo(hidden.dtype).eps * before.norm(dim=-1, keepdim=True)
    size = torch.maximum(added.norm(dim=-1, keepdim=True), rounding)
    weights = 1 / size.clamp_min(1e-30)  # [T, 1]
    y = (weights * added).flatten()
    columns = [(weights * passed[m][1]).flatten() for m in modules]
    X = torch.stack(columns, 1) if columns else y.new_zeros(len(y), 0)
    chosen: list[int] = []
    coefficients = y.new_zeros(0, 1)
    left = y
    while left.norm() > 1e-4 * y.norm():
        if len(chosen) == len(modules) or len(chosen) == _MOST:
            names = ", ".join(sorted({type(m).__name__ for m in modules}))
            raise MelboError(
                f"what {where} adds to the stream is not a sum of outputs of its modules "
                f"({names}): it can be neither edited nor read"
            )
        score = (X.T @ left).abs() / X.norm(dim=0).clamp_min(1e-30)
        score[chosen] = -1
        chosen.append(int(score.argmax()))
        coefficients = torch.linalg.lstsq(X[:, chosen], y[:, None]).solution
        left = y - (X[:, chosen] @ coefficients)[:, 0]
    found: dict[nn.Module, float] = {}
    for i, c in sorted(zip(chosen, coefficients[:, 0].tolist(), strict=True)):
        if abs(c) * X[:, i].norm() > 1e-3 * y.norm():
            found[modules[i]] = 1.0 if abs(c - 1) < 1e-4 else c  # a plain sum is one exactly
    return found


def _matrices_behind(
    module: nn.Module, passed: _Passed, block: int, names: dict[int, str], where: str
) -> list[OutputMatrix]:
    """Output matrices behind a summand.

    Args:
        module: The summand.
        passed: Inputs and outputs of the block's modules.
        block: Index of the block.
        names: Names of the model's parameters, by identity.
        where: The block in words.

    Raises:
        MelboError: There are none.
    """
    if isinstance(module, (nn.Linear, Conv1D)):
        weight = module.weight
        axis = 0 if isinstance(module, nn.Linear) else 1
        name = names[id(weight)]
        return [OutputMatrix(block, name, module, weight, axis, module.bias, module)]
    entered, out = passed[module]
    feeding = [m for m, (_, y) in passed.items() if m is not module and torch.equal(y, entered)]
    if feeding and not list(module.children()):
        gain = _gain(entered, out)
        if gain is not None:
            behind = _matrices_behind(feeding[0], passed, block, names, where)
            return [replace(matrix, summand=module, gain=gain) for matrix in behind]
    found = _matrices_of_experts(module, out.shape[-1], block, names)
    if not found:
        raise MelboError(
            f"{where} adds the output of {type(module).__name__} to the stream, "
            "which is no matrix: it can be neither edited nor read"
        )
    return found


def _matrices_of_experts(
    mixture: nn.Module, width: int, block: int, names: dict[int, str]
) -> list[OutputMatrix]:
    """Output matrices of a mixture's experts, by their names."""
    found = []
    for holder in mixture.modules():
        for own_name, p in holder.named_parameters(recurse=False):
            name = names[id(p)]
            known = any(part in name for part in _EXPERTS) and "bias" not in own_name
            if known and p.ndim >= 2 and width in p.shape[-2:]:
                transposed = isinstance(holder, Conv1D) or getattr(holder, "is_transposed", False)
                axis = p.ndim - (1 if transposed else 2)
                bias = getattr(holder, f"{own_name}_bias", getattr(holder, "bias", None))
                found.append(OutputMatrix(block, name, holder, p, axis, bias, mixture))
    return found


def _gain(entered: Tensor, out: Tensor) -> Tensor | None:
    """The g ``[d]``, up to a factor, if ``out`` is g ⊙ x / rms(x) of its input x; else None."""
    ratio = out / torch.where(entered == 0, torch.inf, entered)
    each = nn.functional.normalize(ratio, dim=-1)  # [T, d]
    g = each.mean(0)
    return g if (each - g).norm(dim=-1).max() < 1e-3 * g.norm() else None
