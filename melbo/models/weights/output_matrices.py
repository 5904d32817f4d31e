"""The matrices that write to the residual stream, found by what blocks do and not by their names.

A block adds h_out − h_in to the stream, a sum of outputs of modules inside it; least squares tells
which of them. Where a norm stands between a matrix and the stream (Gemma 2 and 3, OLMo 2), the norm
is the summand, and the matrix is the module that feeds it. Half precision would round the sum to
noise: there, a copy of one block at a time is looked at in single precision. Blocks whose weights
accelerate keeps elsewhere are copied likewise.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from melbo.errors import MelboError
from melbo.models.language_model import LanguageModel
from melbo.models.replay import Call, Run, Shared, Slice, call_block
from melbo.models.weights.block_at_work import (
    Passed,
    Seen,
    at_work,
    exact_rows,
    few_tokens,
    first_tensor,
    precise,
)
from melbo.models.weights.experts import Alternatives, alternatives, expert_weights

_MOST = 8  # summands of a block
_TIMES = 8  # random tokens for each expert of a block


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
        centred: Whether that norm subtracts the mean of y first.
        bias_name: Dotted name of the bias in the model; empty without one.
        expert: Whether the matrix is of experts, of which a token reaches but some.
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
    centred: bool = False
    bias_name: str = ""
    expert: bool = False


@dataclass(frozen=True)
class Look:
    """Output matrices of all blocks of a slice, and what each block adds on a few tokens.

    Attributes:
        matrices: The matrices, in the order in which they run.
        calls: The blocks as they were called.
        entering: Stream that entered each block.
        added: Sum that each block added to it.
    """

    matrices: list[OutputMatrix] = field(default_factory=list)
    calls: tuple[Call, ...] = ()
    entering: list[Tensor] = field(default_factory=list)
    added: list[Tensor] = field(default_factory=list)


def output_matrices(lm: LanguageModel, block: int | None = None) -> list[OutputMatrix]:
    """Find the output matrices of every block, or of one, in the order in which they run.

    In half precision this takes the memory of one block in single precision.

    Args:
        lm: The model.
        block: Index of the block; all blocks if left out.

    Raises:
        MelboError: A block does not add a sum of its matrices' products; names what was found.
    """
    return look(lm, block).matrices


def look(lm: LanguageModel, block: int | None = None) -> Look:
    """Find output matrices as `output_matrices` does, and keep what each block added.

    Args:
        lm: The model.
        block: Index of the block; all blocks if left out.

    Raises:
        MelboError: As `output_matrices`.
    """
    part = _on_a_few_tokens(lm, *((0, lm.depth) if block is None else (block, block + 1)))
    hidden = precise(part.hidden)
    shared: Shared = {}
    found = Look(calls=part.calls)
    for call in part.calls:
        seen = at_work(lm, call, hidden, shared)
        matrices = list(_matrices_of_block(lm, call.index, seen, hidden))
        found.matrices.extend(matrices)
        entering, after = hidden, seen.after
        hidden = seen.after
        if more := _tokens_for_experts(matrices, entering):
            entering = torch.cat([entering, *more])
            after = at_work(lm, call, entering, {}).after
        found.entering.append(entering)
        found.added.append(exact_rows(after) - exact_rows(entering))
        del seen  # and the copy of the block with it
    return found


def added_again(lm: LanguageModel, before: Look) -> Iterator[Tensor]:
    """Sum that each block adds now to the stream that entered it before, ``[T, d]`` each."""
    shared: Shared = {}
    for call, hidden in zip(before.calls, before.entering, strict=True):
        after = at_work(lm, call, hidden, shared).after
        yield exact_rows(after) - exact_rows(hidden)


def _tokens_for_experts(matrices: Sequence[OutputMatrix], hidden: Tensor) -> list[Tensor]:
    """Random streams of so many tokens that each expert of a block is chosen by some.

    Args:
        matrices: Output matrices of the block.
        hidden: Stream that enters it ``[1, T, d]``, as large as the random ones are.
    """
    experts = [w.weight.shape[0] if w.weight.ndim > 2 else 1 for w in matrices if w.expert]
    rows = -(-_TIMES * sum(experts) // hidden.shape[1])
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(rows, *hidden.shape[1:], generator=generator).to(hidden)
    size = hidden.norm(dim=-1).median() / noise.norm(dim=-1, keepdim=True)
    return list((size * noise)[:, None])


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
    hidden = precise(part.hidden)
    others = hidden.clone()
    others[:, :-1] = others[:, :-1].roll(1, -1)  # other directions of the same norms
    changed = at_work(lm, part.calls[0], others, {}).passed
    seen = at_work(lm, part.calls[0], hidden, {})
    for matrix in _matrices_of_block(lm, block, seen, hidden):
        was, now = (p[matrix.summand][1][-1] for p in (seen.passed, changed))  # at the last token
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
            taken.append(first_tensor(out))
            raise _Added

        handle = matrix.summand.register_forward_hook(take)
        try:
            with suppress(_Added):
                call_block(block, by_name, hidden, args, kwargs)
        finally:
            handle.remove()
        return matrix.factor * taken[0].reshape(hidden.shape)

    return run


class _Added(Exception):  # noqa: N818 (a signal, not an error)
    """The sum that the block adds is known; nothing after that is needed."""


def _on_a_few_tokens(lm: LanguageModel, source: int, target: int) -> Slice:
    return lm.capture(*few_tokens(), source, target)


def _matrices_of_block(
    lm: LanguageModel, block: int, seen: Seen, hidden: Tensor
) -> Iterator[OutputMatrix]:
    """Output matrices of one block, in the order in which they run.

    Raises:
        MelboError: They are not found, or belong to one of several experts that the block calls.
    """
    paths = {module: name for name, module in lm.model.named_modules()}
    where = f"block {block} of {lm.name}"
    hidden = hidden.to(seen.after.device)
    inside = alternatives(lm.blocks[block])
    # a module that chooses among them stands for the one that all of these few tokens chose
    whole = {m: x for m, x in seen.passed.items() if not _chosen_inside(m, inside, seen.passed)}
    for module, factor in _summands(whole, hidden, seen.after, where).items():
        if not all(other in seen.passed for other in inside.get(module, ())):
            raise MelboError(
                f"{where} writes through {paths[module]}, one of several modules of which a few "
                "tokens reached this alone: the others can be neither edited nor verified"
            )
        for matrix in _matrices_behind(module, seen, block, paths, where):
            yield replace(matrix, factor=factor)


def _chosen_inside(module: nn.Module, inside: Alternatives, passed: Passed) -> bool:
    """Tell whether a module is part of a list of experts, say, within a module that was seen."""
    return module in inside and any(
        module is not outer and outer not in inside and module in set(outer.modules())
        for outer in passed
    )


def _summands(passed: Passed, hidden: Tensor, after: Tensor, where: str) -> dict[nn.Module, float]:
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
    before, added = exact_rows(hidden), exact_rows(after) - exact_rows(hidden)
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
    module: nn.Module, seen: Seen, block: int, paths: dict[nn.Module, str], where: str
) -> list[OutputMatrix]:
    """Output matrices behind a summand.

    Args:
        module: The summand.
        seen: The block at work.
        block: Index of the block.
        paths: Names of the model's modules.
        where: The block in words.

    Raises:
        MelboError: There are none.
    """
    path = paths[module]
    if isinstance(module, (nn.Linear, Conv1D)):
        axis = 0 if isinstance(module, nn.Linear) else 1
        return [a_matrix(block, path, module, "weight", axis, module)]
    entered, out = seen.passed[module]
    feeding = [
        m for m, (_, y) in seen.passed.items() if m is not module and torch.equal(y, entered)
    ]
    if feeding and not torch.equal(entered, out) and not list(module.children()):
        gain = gain_between(entered, out)
        if gain is not None:
            behind = _matrices_behind(feeding[0], seen, block, paths, where)
            return [replace(matrix, summand=module, gain=gain) for matrix in behind]
    found = []
    for name, axis in expert_weights(seen.mixtures.get(module), out.shape[-1]):
        inside, _, own = name.rpartition(".")
        holder, at = module.get_submodule(inside), ".".join(filter(None, (path, inside)))
        found.append(replace(a_matrix(block, at, holder, own, axis, module), expert=True))
    packed = [name for name, t in module.named_buffers() if t.dtype == torch.int32]
    if not found and packed and not list(module.children()):  # of a quantiser: to be read only
        found.append(a_matrix(block, path, module, packed[0], 0, module))
    if not found:
        raise MelboError(
            f"{where} adds the output of {type(module).__name__} to the stream, "
            "which is no matrix: it can be neither edited nor read"
        )
    return found


def a_matrix(
    block: int, path: str, module: nn.Module, own: str, axis: int, summand: nn.Module
) -> OutputMatrix:
    """Describe a weight of a module as an output matrix, with the bias that goes with it.

    Args:
        block: See `OutputMatrix`.
        path: Dotted name of the module in the model.
        module: See `OutputMatrix`.
        own: Name of the weight in the module.
        axis: See `OutputMatrix`.
        summand: See `OutputMatrix`.
    """
    weight: Tensor = getattr(module, own)
    names = (f"{own}_bias", own.removesuffix("weight") + "bias")
    bias_name = next((n for n in names if isinstance(getattr(module, n, None), Tensor)), "")
    bias: Tensor | None = getattr(module, bias_name) if bias_name else None
    if bias is None or isinstance(module, nn.Embedding):
        bias, bias_name = None, ""
    at = f"{path}." if path else ""
    whole = f"{at}{bias_name}" if bias_name else ""
    return OutputMatrix(block, f"{at}{own}", module, weight, axis, bias, summand, bias_name=whole)


def gain_between(entered: Tensor, out: Tensor) -> Tensor | None:
    """The g ``[d]``, up to a factor, if ``out`` is g ⊙ x / rms(x) of its input x; else None."""
    ratio = out / torch.where(entered == 0, torch.inf, entered)
    each = nn.functional.normalize(ratio, dim=-1)  # [T, d]
    g = each.mean(0)
    return g if (each - g).norm(dim=-1).max() < 1e-3 * g.norm() else None
