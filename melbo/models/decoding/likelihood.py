"""Likelihood of replies that are known already, each after a prompt of its own."""

import copy
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from melbo.models.changes import is_hooked
from melbo.models.decoding.shared_prefix import can_split, common_prefix, read_prefix
from melbo.models.edits import EditSequence
from melbo.models.language_model import LanguageModel
from melbo.models.text.prompts import pad_rows

#: Tokens of a prompt and of the reply to it.
Pair = tuple[Sequence[int], Sequence[int]]


class BlocksBefore:
    """Blocks before a layer, which run the first time that a batch is read and never again.

    Nothing that an edit does from that layer on reaches them. Later passes over the same batch get
    what they gave, and their keys and values.

    Args:
        lm: The model.
        layer: The layer; blocks 0 … layer − 1 run once.
    """

    def __init__(self, lm: LanguageModel, layer: int) -> None:
        # hooks of people have to see every pass
        self._blocks = () if is_hooked(lm.blocks[:layer]) else tuple(lm.blocks[:layer])
        self._left: dict[str, Any] = {}
        self._layers: list[Any] | None = None

    @contextmanager
    def during(self, name: str) -> Generator[None, None, None]:
        """Record what the blocks give inside the ``with`` block, or give it again.

        Args:
            name: Name of the pass.
        """
        own = [block.__dict__.get("forward") for block in self._blocks]
        last = len(self._blocks) - 1
        for i, block in enumerate(self._blocks):
            if name in self._left:
                object.__setattr__(block, "forward", lambda *_, **__: self._left[name])
            elif i == last:
                object.__setattr__(block, "forward", self._recording(block, name))
        try:
            yield
        finally:
            for block, before in zip(self._blocks, own, strict=True):
                block.__dict__.pop("forward", None)
                if before is not None:
                    block.__dict__["forward"] = before

    def complete(self, cache: Any) -> None:
        """Keep the blocks' keys and values, or put them into a cache that lacks them.

        Args:
            cache: Cache of a pass, changed in place.
        """
        first = len(self._blocks)
        if self._layers is None:
            self._layers = cache.layers[:first]
        # a shallow copy will do: layers replace their tensors and do not write into them
        cache.layers[:first] = [copy.copy(layer) for layer in self._layers]

    def _recording(self, block: nn.Module, name: str) -> Any:
        """The block's own ``forward``, with a record of what it gives."""
        forward: Any = block.forward

        def recorded(*args: Any, **kwargs: Any) -> Any:
            self._left[name] = forward(*args, **kwargs)
            return self._left[name]

        return recorded


def reply_nll(
    lm: LanguageModel,
    model: Any,
    batch: Sequence[Pair],
    once: bool = True,
    before: BlocksBefore | None = None,
) -> Tensor:
    """Negative log-likelihood of every token of the replies of a batch, in nats, ``[tokens]``.

    Args:
        lm: The model, for its device and pad token.
        model: The module that reads, ``lm.model`` or one trained from it.
        batch: Prompts and replies.
        once: As in `reply_logits`.
        before: As in `reply_logits`.
    """
    logits, targets = reply_logits(lm, model, batch, once, before)
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def reply_logits(
    lm: LanguageModel,
    model: Any,
    batch: Sequence[Pair],
    once: bool = True,
    before: BlocksBefore | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits before every token of the replies of a batch, and those tokens, row after row.

    Rows are padded on the right, where no token of theirs sees it, and the output head reads only
    the tokens that are asked for.

    Args:
        lm: The model, for its device and pad token.
        model: The module that reads, ``lm.model`` or one trained from it.
        batch: Prompts and replies, none of them empty.
        once: Whether to read the common prefix of all prompts, mostly the chat template, once,
            where a trial shows that the model can. Not where an edit treats each row of the batch
            in its own way.
        before: Blocks that need to run once only, where the same batch is read again and again.

    Returns:
        Logits ``[tokens, vocabulary]`` and tokens ``[tokens]``.
    """
    shared = common_prefix([prompt for prompt, _ in batch]) if once else []
    past = None
    if shared and can_split(lm, EditSequence(()), 1):
        ids = torch.tensor([shared], device=lm.device)
        with nullcontext() if before is None else before.during("prefix"):
            prefix = read_prefix(model, ids, logits_to_keep=1)
        past = None if prefix is None else prefix.cache
    if past is None:
        shared = []
    else:
        if before is not None:
            before.complete(past)
        past.batch_repeat_interleave(len(batch))
    rest = [(*prompt[len(shared) :], *reply) for prompt, reply in batch]
    ids = pad_rows(rest, lm.pad, side="right")[0].to(lm.device)
    # padding counts as seen: no token before it is the wiser, and where a window holds nothing else
    # there would be nothing to attend to
    seen = ids.new_ones(len(batch), len(shared) + ids.shape[1])
    # each token is told from the one before it
    at = [
        (row, len(prompt) - len(shared) - 1 + i)
        for row, (prompt, reply) in enumerate(batch)
        for i in range(len(reply))
    ]
    rows, columns = torch.tensor(at, device=lm.device).T
    with (
        nullcontext() if before is None else before.during("rest"),
        _head_at(lm, rows, columns),
    ):
        logits = model(
            input_ids=ids, attention_mask=seen, past_key_values=past, use_cache=past is not None
        ).logits
    if logits.shape[:2] != (1, len(rows)):
        logits = logits[rows.to(logits.device), columns.to(logits.device)][None]
    # an index would copy them in a backward pass
    return logits.flatten(0, 1).float(), ids[rows, columns + 1].to(logits.device)


@contextmanager
def _head_at(lm: LanguageModel, rows: Tensor, columns: Tensor) -> Generator[None, None, None]:
    """Make the output head read single tokens of a batch, as one row, inside the ``with`` block.

    Args:
        lm: The model.
        rows: Row of each token.
        columns: Column of each token.
    """
    head = lm.model.get_output_embeddings()
    if head is None:
        yield
        return

    def hook(head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *more = args
        return hidden[rows.to(hidden.device), columns.to(hidden.device)][None], *more

    with head.register_forward_pre_hook(hook):
        yield
