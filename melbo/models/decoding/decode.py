"""Replies of many rows, each under its own edit, in one stream of batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from melbo.errors import MelboError
from melbo.models.decoding.kv_cache import give_room
from melbo.models.decoding.shared_prefix import (
    KEPT,
    LEAST,
    SharedPrefix,
    can_read_once,
    read_once,
    selectable,
)
from melbo.models.edits import Edit
from melbo.models.edits import edit as editing
from melbo.models.language_model import LanguageModel
from melbo.models.text.prompts import pad_rows
from melbo.models.trial import generate_plainly
from melbo.progress import track


@dataclass(frozen=True)
class Batching:
    """Settings of how rows share the passes of a model; replies do not depend on them.

    Attributes:
        size: Number of rows decoded together; halved by itself when memory runs out.
        leg: Tokens after which rows that have ended leave the batch.
        pass_rows: Number of rows that cost as much to decode as one more pass (about 11 when timed
            by hand; research/speed/batches.py compares the batches that follow with others).
        least_prefix: Least number of tokens of a common prefix that is worth reading on its own.
        kept_prefixes: Number of rows of common prefixes that are kept.
    """

    size: int = 128
    leg: int = 16
    pass_rows: float = 16
    least_prefix: int = LEAST
    kept_prefixes: int = KEPT


_USUAL = Batching()


def decode(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    edit: Edit,
    max_new_tokens: int,
    batching: Batching = _USUAL,
    first_logits: Callable[[int, Tensor], None] | None = None,
    progress: bool = True,
    temperature: float = 0.0,
    alike: Sequence[int] | None = None,
) -> list[list[int]]:
    """Reply to prompts, the i-th under row i of an edit.

    Where a prompt has many rows, they run on their own and read it once, up to the first edited
    block; other rows run in order of length. A prefix that all prompts share is read once for all
    rows that are edited alike. Rows that have ended leave the batch. When memory runs out the batch
    is halved and tried again.

    Args:
        lm: The model.
        prompts: Prompts as token ids.
        edit: The edit.
        max_new_tokens: Length of a reply at most.
        batching: Settings of how rows share passes.
        first_logits: Called with each row's number and its logits ``[vocabulary]`` for the first
            token of the reply.
        progress: Whether to draw a bar.
        temperature: 0 for greedy replies; otherwise replies are drawn (by torch's own generator)
            from softmax(logits / temperature).
        alike: A number for each row, the same for rows that are edited alike (see `SharedPrefix`).

    Returns:
        Token ids of each reply, up to and with the end-of-reply token.

    Raises:
        MelboError: Prompt and reply are longer than the model reads, a length or batch size is
            less than 1, or memory runs out on a single row.
        RuntimeError: Raised by the model, for any other reason.
    """
    for prompt in prompts:
        _check_length(lm, len(prompt), max_new_tokens)
    replies: list[list[int]] = [[] for _ in prompts]
    prefix = SharedPrefix(lm, prompts, edit, alike, batching.least_prefix, batching.kept_prefixes)

    some = partial(_Batch, lm, prefix, max_new_tokens, temperature, batching.leg)

    def run(batch: list[int]) -> None:
        job = some(batch, [prompts[i] for i in batch], edit.rows(torch.tensor(batch)))
        for i, reply, logits in zip(batch, *job.decode(), strict=True):
            replies[i] = reply
            if first_logits is not None:
                first_logits(i, logits)

    groups = _groups(prompts, len(prefix), max_new_tokens, batching, lm.traits.left_padding)
    with track(len(prompts), "completions", progress) as bar:
        for done in batches_that_fit(groups, batching.size, run):
            bar.update(done)
    return replies


def _groups(
    prompts: Sequence[Sequence[int]],
    prefix: int,
    steps: int,
    batching: Batching,
    padding: bool = True,
) -> list[list[int]]:
    """Groups of rows that may share a batch.

    Rows of one prompt run on their own if that saves more than it costs. It saves reading the
    prompt (without its ``prefix`` tokens) for every row; it costs passes that hold few rows. Other
    rows go by length, so that there is little ``padding``, or none where a model would read it.
    """
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_prompt.setdefault(tuple(prompt), []).append(i)

    def alone(prompt: tuple[int, ...], rows: int) -> bool:
        saved = (rows - 1) * (len(prompt) - prefix) * batching.size
        return saved > steps * batching.pass_rows * max(0, batching.size - rows)

    many = [rows for prompt, rows in by_prompt.items() if alone(prompt, len(rows))]
    few = [i for prompt, rows in by_prompt.items() if not alone(prompt, len(rows)) for i in rows]
    few.sort(key=lambda i: len(prompts[i]))
    if padding:
        return [*many, few]
    return [*many, *(list(rows) for _, rows in groupby(few, key=lambda i: len(prompts[i])))]


def batches_that_fit(
    groups: Sequence[Sequence[int]], size: int, run: Callable[[list[int]], None]
) -> Iterator[int]:
    """Run the rows of each group in equal batches, halved whenever memory runs out.

    Args:
        groups: Rows of each group.
        size: Number of rows of a batch at most.
        run: Function of the rows of a batch.

    Yields:
        Number of rows of each batch that has run.

    Raises:
        MelboError: ``size`` is less than 1, or memory runs out on a single row.
        RuntimeError: Raised by ``run``, for any other reason.
    """
    if size < 1:
        raise MelboError(f"batch_size is {size}: expected at least 1")
    for group in groups:
        start = 0
        while start < len(group):
            left = len(group) - start
            batch = list(group[start : start + -(-left // -(-left // size))])
            try:
                run(batch)
            except RuntimeError as err:
                if not _out_of_memory(err):
                    raise
                if len(batch) == 1:
                    raise MelboError(
                        "out of memory on a single row: shorten the prompts, "
                        "lower max_new_tokens or use a smaller dtype"
                    ) from err
                size = len(batch) // 2
                continue
            start += len(batch)
            yield len(batch)


@dataclass(frozen=True)
class _Batch:
    """Rows that are decoded together.

    Attributes:
        lm: The model.
        prefix: Prefix that all prompts share, these and others.
        max_new_tokens: Length of a reply at most.
        temperature: See `decode`.
        leg: See `Batching`.
        rows: Numbers of the rows.
        prompts: Their prompts, as token ids.
        edit: The edit of these rows.
    """

    lm: LanguageModel
    prefix: SharedPrefix
    max_new_tokens: int
    temperature: float
    leg: int
    rows: Sequence[int]
    prompts: Sequence[Sequence[int]]
    edit: Edit

    def decode(self) -> tuple[list[list[int]], Tensor]:
        """Replies, and logits of their first tokens ``[n, vocabulary]``.

        When memory runs out, what is kept of the prefix goes before rows do.

        Raises:
            RuntimeError: Raised by the model.
        """
        try:
            return self._decode()
        except RuntimeError as err:
            if not len(self.prefix) or not _out_of_memory(err):
                raise
            self.prefix.forget()
            return self._decode()

    def _decode(self) -> tuple[list[list[int]], Tensor]:
        """Replies and logits; rows that have ended are taken out after each leg."""
        lm = self.lm
        prefix = self.prefix.length(self.prompts)
        ids, mask = self._padded(prefix)
        width = ids.shape[1]
        rows = torch.arange(len(self.prompts), device=lm.device)
        replies: list[list[int]] = [[] for _ in self.prompts]
        leg = self.max_new_tokens if self.edit.stateful else self.leg
        cache, first = self._begin(ids, prefix)
        if first is not None:
            ids = torch.cat([ids, self._draw(first)], 1)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        while True:
            for i, new in zip(rows.tolist(), ids[:, width:].tolist(), strict=True):
                replies[i] = _until_end(new, lm.eos)
            left = self.max_new_tokens - (ids.shape[1] - width)
            unfinished = [not replies[i] or replies[i][-1] not in lm.eos for i in rows.tolist()]
            going = torch.tensor(unfinished, device=lm.device)
            if left == 0 or not going.any():
                assert first is not None
                return replies, first
            if not going.all() and (cache is None or selectable(cache)):
                rows, ids, mask = rows[going], ids[going], mask[going]
                if cache is not None:
                    cache.batch_select_indices(going.nonzero()[:, 0])
            processor = _FirstLogits()
            with editing(lm, self.edit.rows(rows.cpu()), prompt=width):
                out = continued(
                    lm,
                    ids,
                    mask,
                    min(leg, left),
                    self.temperature,
                    past_key_values=give_room(cache),
                    logits_processor=LogitsProcessorList([processor] if first is None else []),
                )
            first = processor.logits if first is None else first
            # read again where the model does not take it up
            cache = out.past_key_values if lm.traits.resumes else None
            grown = out.sequences.shape[1] - ids.shape[1]
            mask = torch.cat([mask, mask.new_ones(len(mask), grown)], 1)
            ids = out.sequences

    def _padded(self, prefix: int) -> tuple[Tensor, Tensor]:
        """Ids and mask ``[n, T]``, padded between the prefix and the rest."""
        device = self.lm.device
        rest = [prompt[prefix:] for prompt in self.prompts]
        ids, mask = pad_rows(rest, self.lm.pad, side="left")
        ids = torch.cat([self.prefix.ids[:, :prefix].expand(len(ids), -1), ids], 1)
        mask = torch.cat([mask.new_ones(len(ids), prefix), mask], 1)
        return ids.to(device), mask.to(device)

    def _begin(self, ids: Tensor, prefix: int) -> tuple[Any, Tensor | None]:
        """Cache to go on from, and logits of the first token if they are known already."""
        alike = all(prompt == self.prompts[0] for prompt in self.prompts)
        if len(self.prompts) > 1 and alike and can_read_once(self.lm, self.edit):
            before = self.prefix.cache(self.rows, self.edit) if prefix else None
            return read_once(self.lm, ids[:1, prefix:], self.edit, len(self.prompts), before)
        return (self.prefix.spread(self.rows, self.edit) if prefix else None), None

    def _draw(self, logits: Tensor) -> Tensor:
        """A token for each row ``[n, 1]``."""
        if self.temperature == 0:
            return logits.argmax(-1, keepdim=True)
        return (logits / self.temperature).softmax(-1).multinomial(1)


def continued(
    lm: LanguageModel,
    ids: Tensor,
    mask: Tensor,
    max_new_tokens: int,
    temperature: float = 0.0,
    **more: Any,
) -> Any:
    """Continue token ids by the model's own ``generate``, greedily or drawn.

    The checkpoint's own settings (sampling, repetition penalties, kind of cache) are set aside
    meanwhile: replies are compared with each other, and a penalty would act on steered and
    unsteered ones differently.

    Args:
        lm: The model.
        ids: Token ids ``[n, T]``.
        mask: Mask of real tokens ``[n, T]``.
        max_new_tokens: Tokens to add at most.
        temperature: See `decode`.
        more: Passed on to ``generate``.

    Returns:
        Output of ``generate``: ``sequences`` ``[n, T + at most max_new_tokens]`` and the cache,
        ``past_key_values``.

    Raises:
        MelboError: No tokens are asked for, or more than the model can read.
    """
    _check_length(lm, ids.shape[1], max_new_tokens)
    drawn: dict[str, Any] = {"do_sample": False}
    if temperature:
        drawn = {"do_sample": True, "temperature": temperature, "top_k": 0}
    settings = {
        "max_new_tokens": max_new_tokens,
        "eos_token_id": lm.eos or None,
        "use_cache": lm.traits.cache,
        **drawn,
    }
    return generate_plainly(lm, ids, mask, settings, **more)


def _check_length(lm: LanguageModel, prompt: int, max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise MelboError(f"max_new_tokens is {max_new_tokens}: expected at least 1")
    if lm.max_length is not None and prompt + max_new_tokens > lm.max_length:
        raise MelboError(
            f"prompt and reply may come to {prompt + max_new_tokens} tokens, {lm.name} reads at "
            f"most {lm.max_length}: shorten the prompt or lower max_new_tokens"
        )


class _FirstLogits(LogitsProcessor):
    """Logits processor that keeps the logits of the first decoding step."""

    logits: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.logits is None:
            self.logits = scores.detach().float()
        return scores


def _until_end(tokens: list[int], eos: Sequence[int]) -> list[int]:
    for i, token in enumerate(tokens):
        if token in eos:
            return tokens[: i + 1]
    return tokens


def _out_of_memory(err: RuntimeError) -> bool:
    return isinstance(err, torch.OutOfMemoryError) or "allocate memory" in str(err)
