"""Slow plain twins: a model's own passes under a hook, one prompt at a time and without a cache."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from melbo.models.language_model import LanguageModel

# the input of a block [n, T, d], changed
Push = Callable[[Tensor], Tensor]


@contextmanager
def pushed(block: nn.Module, push: Push) -> Iterator[None]:
    """Change the input of a block inside the ``with`` block.

    Args:
        block: The block.
        push: Function that gives the new input.
    """

    def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (push(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": push(kwargs["hidden_states"])}

    handle = block.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def stream(lm: LanguageModel, ids: Tensor) -> Tensor:
    """Stream entering each block and leaving the last ``[depth + 1, n, T, d]``.

    Args:
        lm: The model.
        ids: Token ids ``[n, T]``.
    """
    found: list[Tensor] = []

    def enter(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(args[0] if args else kwargs["hidden_states"])

    def leave(block: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        found.append(out[0] if isinstance(out, tuple) else out)

    handles = [b.register_forward_pre_hook(enter, with_kwargs=True) for b in lm.blocks]
    handles.append(lm.blocks[-1].register_forward_hook(leave))
    try:
        lm.model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(found)


@torch.no_grad()
def logits(lm: LanguageModel, ids: Tensor) -> Tensor:
    """Logits of every token ``[n, T, vocabulary]``.

    Args:
        lm: The model.
        ids: Token ids ``[n, T]``.
    """
    found: Tensor = lm.model(input_ids=ids, use_cache=False).logits
    return found


def places(where: str, skip_first: bool, prompt: int, length: int) -> Tensor:
    """Mask of the tokens that are steered ``[length]``.

    Args:
        where: ``"all"``, ``"prompt"`` or ``"generated"``.
        skip_first: Whether the first token is left out.
        prompt: Number of tokens of the prompt.
        length: Number of all tokens.
    """
    t = torch.arange(length)
    inside = {"all": t >= 0, "prompt": t < prompt, "generated": t >= prompt}[where]
    return inside & (t >= int(skip_first))


@contextmanager
def added(
    lm: LanguageModel, v: Tensor, prompt: int, where: str, skip_first: bool
) -> Iterator[None]:
    """Add a vector to the input of block 1, in passes that hold the whole text of one row.

    Args:
        lm: The model.
        v: The vector ``[d]``.
        prompt: Number of tokens of the prompt.
        where: Tokens that it is added to.
        skip_first: Whether the first token is left out.
    """

    def push(hidden: Tensor) -> Tensor:
        return hidden + places(where, skip_first, prompt, hidden.shape[1])[None, :, None] * v

    with pushed(lm.blocks[1], push):
        yield


def reply(lm: LanguageModel, prompt: Sequence[int], tokens: int) -> list[int]:
    """Greedy reply of a loop that reads everything again for each token.

    Args:
        lm: The model.
        prompt: Token ids of the prompt.
        tokens: Length of the reply at most; a token that ends replies is its last.
    """
    ids = torch.tensor([list(prompt)])
    for _ in range(tokens):
        ids = torch.cat([ids, logits(lm, ids)[:, -1:].argmax(-1)], 1)
        if int(ids[0, -1]) in lm.eos:
            break
    new: list[int] = ids[0, len(prompt) :].tolist()
    return new
