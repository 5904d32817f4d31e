"""Completions of many vectors on many prompts, in one stream of batches."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from .bank import Bank
from .edit import Edit, edit
from .errors import MelboError
from .features import write_whole
from .model import LanguageModel
from .progress import track
from .prompts import Prompts, pad_rows
from .roomy_cache import give_room
from .shared_prompt import Heads, can_read_once, read_once, selectable

_LEG = 16  # tokens between looks at which rows have ended
_PASS = 16  # a pass costs as much as decoding so many rows: about 11 by hand; benchmarks/batches.py holds what follows against the other ways


@dataclass(frozen=True)
class Completion:
    """What the model said.

    Attributes:
        kind: ``"unsteered"``, ``"feature"`` or ``"control"``.
        feature: Which feature (or control) of its set; None when unsteered.
        prompt: Which prompt.
        prompt_text: The prompt as the user wrote it.
        text: The reply, special tokens left out.
        tokens: Its token ids, the end-of-reply token included where it came.
    """

    kind: str
    feature: int | None
    prompt: int
    prompt_text: str
    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Completions:
    """A table of completions: for every prompt the unsteered one (where it was asked for), then every feature's, then every control's."""

    rows: tuple[Completion, ...]

    def __iter__(self) -> Iterator[Completion]:
        """Row by row."""
        return iter(self.rows)

    def __len__(self) -> int:
        """Number of completions."""
        return len(self.rows)

    def of(self, kind: str, feature: int | None = None) -> list[Completion]:
        """One row of the table: the completions of one feature, prompt by prompt."""
        return [c for c in self.rows if c.kind == kind and c.feature == feature]

    def to_jsonl(self) -> bytes:
        """One JSON object a line, without the token ids."""
        return "".join(json.dumps({k: v for k, v in vars(c).items() if k != "tokens"}, ensure_ascii=False) + "\n" for c in self.rows).encode()

    def save(self, path: str | Path) -> None:
        """Write as JSON lines."""
        write_whole({Path(path): self.to_jsonl()})


def generate(
    lm: LanguageModel,
    prompts: Prompts,
    bank: Bank,
    control: Bank | None = None,
    *,
    max_new_tokens: int = 48,
    strength: float | Tensor = 1.0,
    batch_size: int = 128,
    first_logits: Callable[[int, Tensor], None] | None = None,
    unsteered: bool = True,
    progress: bool = True,
) -> Completions:
    """What every feature makes the model say to every prompt, greedily, the unsteered reply first.

    Args:
        lm: The model.
        prompts: What it replies to.
        bank: The features.
        control: More of the same kind to take through the same, usually ``bank.random(…)``.
        max_new_tokens: Length of a reply at most.
        strength: Multiple of the scale; one for all, or one for each feature and control ``[m + c]``.
        batch_size: Rows decoded together; halved by itself when memory runs out.
        first_logits: Called with the row's place in the table and its logits ``[vocabulary]`` for the first token of the reply.
        unsteered: Whether the unsteered replies are wanted too.
        progress: Draw a bar.

    Raises:
        MelboError: Features of another model, as many strengths as there are neither features nor one, or as `decode`.
    """
    bank.check_model(lm)
    both = bank if control is None else bank.join(control)
    strength = torch.as_tensor(strength).cpu()
    if strength.shape not in ((), (1,), (len(both),)):
        raise MelboError(f"got strengths of shape {list(strength.shape)}: expected one for all, or one for each of {len(both)}")
    of_prompt: list[tuple[str, int | None]] = [("unsteered", None)] * unsteered + [("feature", i) for i in range(len(bank))]
    of_prompt += [("control", i) for i in range(len(both) - len(bank))]
    which = torch.tensor([*[0] * unsteered, *range(len(both))]).repeat(len(prompts))
    strengths = torch.cat([torch.zeros(int(unsteered)), strength.expand(len(both))]).repeat(len(prompts))
    tokens = [prompt for prompt in prompts.tokens for _ in of_prompt]
    alike = [*range(len(of_prompt))] * len(prompts)
    replies = decode(lm, tokens, both.edit(which, strengths), max_new_tokens, batch_size, first_logits, progress, alike=alike)
    heads = [(kind, i, p) for p in range(len(prompts)) for kind, i in of_prompt]
    texts = lm.tokenizer.batch_decode(replies, skip_special_tokens=True)
    rows = (Completion(kind, i, p, prompts.texts[p], text, tuple(reply)) for (kind, i, p), text, reply in zip(heads, texts, replies, strict=True))
    return Completions(tuple(rows))


def decode(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    place: Edit,
    max_new_tokens: int,
    batch_size: int = 128,
    first_logits: Callable[[int, Tensor], None] | None = None,
    progress: bool = True,
    temperature: float = 0.0,
    alike: Sequence[int] | None = None,
) -> list[list[int]]:
    """Replies to prompts of token ids, the i-th steered as row i of ``place``; token ids, up to and with the end-of-reply token.

    Rows of a prompt that has many run by themselves and read it once, as far as they do not differ; other rows by length. What all prompts begin
    with is read once for rows that are edited alike. Rows that have ended make room. When memory runs out the batch is halved and tried again.

    Args:
        lm: The model.
        prompts: What it replies to, as token ids.
        place: The edit.
        max_new_tokens: Length of a reply at most.
        batch_size: Rows decoded together.
        first_logits: Called with each row's number and its logits ``[vocabulary]`` for the first token of the reply.
        progress: Draw a bar.
        temperature: 0 for greedy replies; else replies are drawn (by torch's own generator) from softmax(logits / temperature).
        alike: Of each row a number, the same of rows that ``place`` edits alike; by default all or none.

    Raises:
        MelboError: A prompt and a reply longer than the model reads, a length or a batch size less than 1, or memory runs out on a single row.
    """
    for prompt in prompts:
        _check_length(lm, len(prompt), max_new_tokens)
    replies: list[list[int]] = [[] for _ in prompts]
    heads = Heads(lm, prompts, place, alike)

    def run(batch: list[int]) -> None:
        job = lm, batch, prompts, heads, place.rows(torch.tensor(batch)), max_new_tokens, temperature
        try:
            found = _decode_batch(*job)
        except RuntimeError as err:
            if not len(heads) or not _out_of_memory(err):
                raise
            heads.forget()
            found = _decode_batch(*job)
        for i, reply, logits in zip(batch, *found, strict=True):
            replies[i] = reply
            if first_logits is not None:
                first_logits(i, logits)

    with track(len(prompts), "completions", progress) as bar:
        for done in batches_that_fit(_groups(prompts, len(heads), max_new_tokens, batch_size), batch_size, run):
            bar.update(done)
    return replies


def _groups(prompts: Sequence[Sequence[int]], head: int, steps: int, batch_size: int) -> list[list[int]]:
    """Which rows may share a batch: those of a prompt by themselves where that saves more than it costs, the others by length, for little padding.

    It saves reading the prompt, but for its ``head``, with every row; it costs passes that hold few rows.
    """
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_prompt.setdefault(tuple(prompt), []).append(i)

    def alone(prompt: tuple[int, ...], rows: int) -> bool:
        return (rows - 1) * (len(prompt) - head) * batch_size > steps * _PASS * max(0, batch_size - rows)

    many = [rows for prompt, rows in by_prompt.items() if alone(prompt, len(rows))]
    few = [i for prompt, rows in by_prompt.items() if not alone(prompt, len(rows)) for i in rows]
    return [*many, sorted(few, key=lambda i: len(prompts[i]))]


def batches_that_fit(groups: Sequence[Sequence[int]], size: int, run: Callable[[list[int]], None]) -> Iterator[int]:
    """``run`` over the rows of each group in equal batches of at most ``size``, halved whenever memory runs out; yields how many each one had.

    Raises:
        MelboError: ``size`` is less than 1, or memory runs out on a single row.
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
                    raise MelboError("out of memory on a single row: shorten the prompts, lower max_new_tokens or use a smaller dtype") from err
                size = len(batch) // 2
                continue
            start += len(batch)
            yield len(batch)


def _decode_batch(
    lm: LanguageModel, batch: Sequence[int], every: Sequence[Sequence[int]], heads: Heads, place: Edit, max_new_tokens: int, temperature: float
) -> tuple[list[list[int]], Tensor]:
    """Replies to some prompts, and logits of their first tokens.

    A prompt that all rows have in common is read once. Decoding goes in legs, after each of which the rows that have ended are taken out.
    """
    prompts = [every[i] for i in batch]
    head = heads.length(prompts)
    # padding stands between what all have in common and the rest
    ids, mask = pad_rows([prompt[head:] for prompt in prompts], lm.pad, side="left")
    ids = torch.cat([heads.ids[:, :head].expand(len(ids), -1), ids], 1).to(lm.device)
    mask = torch.cat([mask.new_ones(len(ids), head), mask], 1).to(lm.device)
    width = ids.shape[1]
    rows = torch.arange(len(prompts), device=lm.device)
    replies: list[list[int]] = [[] for _ in prompts]
    leg = max_new_tokens if place.remembers else _LEG
    first: Any = None  # logits of the first token
    if len(prompts) > 1 and all(prompt == prompts[0] for prompt in prompts) and can_read_once(lm, place):
        cache, first = read_once(lm, ids[:1, head:], place, len(prompts), heads.cache(batch, place) if head else None)
        drawn = first.argmax(-1, keepdim=True) if temperature == 0 else (first / temperature).softmax(-1).multinomial(1)
        ids, mask = torch.cat([ids, drawn], 1), torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
    else:
        cache = heads.spread(batch, place) if head else None
    while True:
        for i, new in zip(rows.tolist(), ids[:, width:].tolist(), strict=True):
            replies[i] = _until_end(new, lm.eos)
        left = max_new_tokens - (ids.shape[1] - width)
        going = torch.tensor([not replies[i] or replies[i][-1] not in lm.eos for i in rows.tolist()], device=lm.device)
        if left == 0 or not going.any():
            return replies, first
        if not going.all() and selectable(cache):
            rows, ids, mask = rows[going], ids[going], mask[going]
            cache.batch_select_indices(going.nonzero()[:, 0])
        processor = _FirstLogits()
        with edit(lm, place.rows(rows.cpu()), head=head):
            watch = LogitsProcessorList([processor] if first is None else [])
            out = continued(lm, ids, mask, min(leg, left), temperature, past_key_values=give_room(cache), logits_processor=watch)
        first = processor.logits if first is None else first
        cache = out.past_key_values
        mask = torch.cat([mask, mask.new_ones(len(mask), out.sequences.shape[1] - ids.shape[1])], 1)
        ids = out.sequences


def continued(lm: LanguageModel, ids: Tensor, mask: Tensor, max_new_tokens: int, temperature: float = 0.0, **more: Any) -> Any:
    """Continuation of ids ``[n, T]``, greedy or drawn, by the model's own ``generate``, which ``more`` is handed on to.

    Its output: ``sequences`` ``[n, T + at most max_new_tokens]`` and the cache, ``past_key_values``.

    What a checkpoint asks for besides (sampling, repetition penalties, kinds of cache) is set aside while it runs: replies are compared
    with each other, and a penalty would act on steered and unsteered ones differently.

    Raises:
        MelboError: No tokens asked for, or more than the model can read.
    """
    _check_length(lm, ids.shape[1], max_new_tokens)
    drawn = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    config = GenerationConfig(max_new_tokens=max_new_tokens, pad_token_id=lm.pad, eos_token_id=lm.eos or None, return_dict_in_generate=True, **drawn)
    own = getattr(lm.model, "generation_config", None)
    lm.model.generation_config = GenerationConfig()
    try:
        with torch.no_grad(), lm.contiguous_head():
            return lm.model.generate(input_ids=ids.to(lm.device), attention_mask=mask.long().to(lm.device), generation_config=config, **more)
    finally:
        lm.model.generation_config = own


def _check_length(lm: LanguageModel, prompt: int, max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise MelboError(f"max_new_tokens is {max_new_tokens}: expected at least 1")
    if lm.max_length is not None and prompt + max_new_tokens > lm.max_length:
        raise MelboError(
            f"prompt and reply may come to {prompt + max_new_tokens} tokens, {lm.name} reads at most {lm.max_length}: "
            "shorten the prompt or lower max_new_tokens"
        )


class _FirstLogits(LogitsProcessor):
    """Keeps the logits of the first decoding step."""

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
