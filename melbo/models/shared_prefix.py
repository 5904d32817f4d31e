"""What many rows have in common is read once.

A prompt with many rows is read once up to the block where an edit tells rows apart; what all
prompts begin with (a system prompt for the most part) is read once for rows that are edited alike.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from melbo.models.edits import Edit
from melbo.models.edits import edit as editing
from melbo.models.language_model import LanguageModel
from melbo.models.replay import Shared, map_arguments, repeat

LEAST = 8  # tokens of a prefix that is worth reading apart
KEPT = 1024  # rows of prefixes that are kept
# settings of models that look so many tokens back, padding included
_WINDOWS = ("sliding_window", "window_size", "attention_chunk_size")
# settings of models that rotate keys by how long the whole prompt is
_LONG = ("original_max_position_embeddings",)

# results of trials, by trial, kind of edit and layer
_tried: WeakKeyDictionary[LanguageModel, dict[tuple[Any, ...], bool]] = WeakKeyDictionary()


def common_prefix(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Tokens that all prompts begin with, and that none of them ends with."""
    found: list[int] = []
    for column in zip(*(prompt[:-1] for prompt in prompts), strict=False):
        if len(set(column)) > 1:
            break
        found.append(column[0])
    return found


@dataclass(frozen=True)
class Prefix:
    """Tokens that were read once, for rows that go on from there.

    Attributes:
        cache: Cache of the one row.
        logits: Logits at its last token ``[1, vocabulary]``.
    """

    cache: Any
    logits: Tensor

    def repeated(self, rows: int) -> Any:
        """A copy of the cache for this many rows; a forward pass writes into it."""
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(rows)
        return cache


def read_prefix(model: Any, ids: Tensor, **more: Any) -> Prefix | None:
    """Run tokens ``[1, T]``; None where the model's cache cannot be repeated for several rows.

    Args:
        model: The model, as transformers has it.
        ids: The tokens.
        more: Handed on to the model.
    """
    out = model(input_ids=ids, use_cache=True, **more)
    cache = getattr(out, "past_key_values", None)
    return Prefix(cache, out.logits[:, -1]) if selectable(cache) else None


def read_once(
    lm: LanguageModel, ids: Tensor, edit: Edit, rows: int, prefix: Any = None
) -> tuple[Any, Tensor]:
    """Run one prompt for many rows, each edited in its own way.

    The batch grows at the block where the rows part.

    Args:
        lm: A model that `can_read_once`.
        ids: The prompt ``[1, T]``, or the rest of it.
        edit: The edit.
        rows: Number of rows.
        prefix: Cache of what stands before, a row below the block where the rows part and all rows
            from there on (see `SharedPrefix`); it grows.

    Returns:
        The cache of all rows, and their logits at the last token ``[rows, vocabulary]``.
    """
    cache, logits = _read(lm, ids, edit, rows, prefix)
    _spread(cache, lm.layer(edit.layer), rows)
    return cache, logits


def _read(
    lm: LanguageModel, ids: Tensor, edit: Edit, rows: int, prefix: Any = None
) -> tuple[Any, Tensor]:
    """As `read_once`, with one row in the cache below the block where they part."""
    first = lm.layer(edit.layer)
    shared: Shared = {}

    def spread(path: tuple[int, str], tensor: Tensor) -> Tensor:
        return repeat(tensor, rows, lm.axes.batch.get(path))

    def part(index: int) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
        def hook(
            block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            hidden = args[0] if args else kwargs["hidden_states"]
            hidden = hidden.expand(rows, -1, -1) if index == first else hidden
            rest = {k: v for k, v in kwargs.items() if k != "hidden_states"}
            more, rest = map_arguments(index, args[1:], rest, spread, shared)
            return ((hidden, *more), rest) if args else ((), {**rest, "hidden_states": hidden})

        return hook

    before = 0 if prefix is None else int(prefix.get_seq_length())
    handles = [
        lm.blocks[i].register_forward_pre_hook(part(i), with_kwargs=True)
        for i in range(first, lm.depth)
    ]
    try:
        with torch.no_grad(), editing(lm, edit, prefix=before), lm.contiguous_head():
            keep = {"logits_to_keep": 1} if lm.model._supports_logits_to_keep() else {}
            ids = ids.to(lm.device)
            out = lm.model(input_ids=ids, past_key_values=prefix, use_cache=True, **keep)
    finally:
        for handle in handles:
            handle.remove()
    return out.past_key_values, out.logits[:, -1].float()


def _spread(cache: Any, first: int, rows: int) -> None:
    """Repeat the one row that a cache holds below a block."""
    for layer in cache.layers[:first]:
        layer.batch_repeat_interleave(rows)


class SharedPrefix:
    """What all of some prompts begin with, read once for rows that are edited alike.

    Args:
        lm: The model.
        prompts: The prompts, as token ids.
        edit: The edit, row by row.
        alike: A number for each prompt, the same for rows that are edited alike. By default all
            rows are, or none, as ``edit`` says.
        least: Tokens of a prefix that is worth reading apart.
        kept: Rows of prefixes that are kept.

    Attributes:
        ids: Tokens of the prefix ``[1, P]``; none where nothing is read beforehand.
    """

    def __init__(
        self,
        lm: LanguageModel,
        prompts: Sequence[Sequence[int]],
        edit: Edit,
        alike: Sequence[int] | None = None,
        least: int = LEAST,
        kept: int = KEPT,
    ) -> None:
        if alike is None:
            alike = [0] * len(prompts) if _same_for_all(edit) else range(len(prompts))
        self.lm, self.alike, self._most = lm, alike, kept
        self._kept: dict[tuple[int, ...], Any] = {}
        tokens = common_prefix(prompts)
        # where no two rows are alike, a prefix would only be read apart
        several = 2 * len(set(alike)) <= len(prompts)
        worth = len(tokens) >= least and several and can_split(lm, edit, len(prompts))
        self.ids = torch.tensor([tokens if worth else []], dtype=torch.long)
        self.padded = worth and can_split(lm, edit, len(prompts), padded=True)

    def __len__(self) -> int:
        """Number of tokens; 0 where nothing is read beforehand."""
        return self.ids.shape[1]

    def length(self, prompts: Sequence[Sequence[int]]) -> int:
        """Number of tokens that a batch of these prompts can go on from.

        Padding would stand between prefix and rest, which not every model reads past.
        """
        return len(self) if self.padded or len({len(prompt) for prompt in prompts}) == 1 else 0

    def cache(self, batch: Sequence[int], edit: Edit) -> Any:
        """Cache of the prefix for some rows, with one row below the block where they part.

        Args:
            batch: Numbers of the rows.
            edit: The edit of these rows.
        """
        numbers = [self.alike[i] for i in batch]
        key = tuple(sorted(set(numbers)))
        kept = self._kept.get(key)
        if kept is None:
            one_each = edit.rows(torch.tensor([numbers.index(number) for number in key]))
            kept, _ = _read(self.lm, self.ids, one_each, len(key))
            if sum(map(len, self._kept)) + len(key) <= self._most:
                self._kept[key] = kept
        which = torch.tensor([key.index(number) for number in numbers], device=self.lm.device)
        return _grown(kept, self.lm.layer(edit.layer), which)

    def spread(self, batch: Sequence[int], edit: Edit) -> Any:
        """As `cache`, with all rows throughout."""
        cache = self.cache(batch, edit)
        _spread(cache, self.lm.layer(edit.layer), len(batch))
        return cache

    def forget(self) -> None:
        """Let go of what is kept, and read nothing beforehand from now on."""
        self._kept.clear()
        self.ids = self.ids[:, :0]


def _same_for_all(edit: Edit) -> bool:
    """Whether an edit treats all rows alike."""
    return edit.rows(torch.tensor([0])) is edit


def _grown(cache: Any, first: int, which: Tensor) -> Any:
    """A copy of a cache with these rows from a block on, and the one row below it."""
    new = copy.copy(cache)
    # layers replace what they hold, they do not write into it
    new.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in new.layers[first:]:
        layer.batch_select_indices(which)
    return new


def can_read_once(lm: LanguageModel, edit: Edit) -> bool:
    """Whether `read_once`, and one more token on top, give what rows of their own give.

    Tried once on four tokens and three rows.
    """
    return not edit.stateful and _tried_once(lm, edit, 3, _try_reading_once)


def can_split(lm: LanguageModel, edit: Edit, rows: int, padded: bool = False) -> bool:
    """Whether a prompt read in two passes gives what it gives in one.

    Tried once on four tokens and three rows.

    Args:
        lm: The model.
        edit: The edit of the rows.
        rows: Number of rows.
        padded: Whether padding may stand between the two parts.
    """
    config = lm.model.config.get_text_config()
    if not edit.prefix_safe or edit.stateful or any(getattr(config, n, None) for n in _LONG):
        return False
    if padded and any(getattr(config, name, None) for name in _WINDOWS):
        return False  # they count padding, which four tokens would not show
    return _tried_once(lm, edit, rows, _try_padding if padded else _try_splitting)


def _tried_once(
    lm: LanguageModel, edit: Edit, rows: int, trial: Callable[[LanguageModel, Edit], bool]
) -> bool:
    tried = _tried.setdefault(lm, {})
    inner = (type(e) for e in getattr(edit, "edits", ()))
    key = (trial, type(edit), lm.layer(edit.layer), *inner)
    if key not in tried:
        try:
            tried[key] = trial(lm, edit.rows(torch.arange(3) % rows))
        except Exception:  # whatever it is: rows of their own need none of this
            tried[key] = False
    return tried[key]


def _try_reading_once(lm: LanguageModel, three: Edit) -> bool:
    ids = torch.arange(1, 5, device=lm.device)[None]
    return _matches(lm, three, ids.expand(3, -1), None, read_once(lm, ids, three, 3))


def _try_splitting(lm: LanguageModel, three: Edit) -> bool:
    ids = torch.arange(1, 5, device=lm.device)[None]
    prefix, first = _read(lm, ids[:, :2], three, 3)[0], lm.layer(three.layer)
    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    if any(type(layer) not in plain for layer in prefix.layers):
        return False  # states, which a second row of the same prefix cannot begin from
    kept = _grown(prefix, first, torch.tensor([0, 1, 2], device=lm.device))
    found = read_once(lm, ids[:, 2:], three, 3, kept)
    return _matches(lm, three, ids.expand(3, -1), None, found)


def _try_padding(lm: LanguageModel, three: Edit) -> bool:
    ids = torch.arange(1, 6, device=lm.device).expand(3, -1)
    mask = torch.ones(3, 5, dtype=torch.long, device=lm.device)
    mask[1, 2] = 0  # after the prefix
    left = ids.clone()
    # the same row, padded on the left
    left[1, :3], left[1, 0] = ids[1, [0, 0, 1]], lm.pad
    prefix, first = _read(lm, ids[:1, :2], three, 3)[0], lm.layer(three.layer)
    _spread(prefix, first, 3)
    where = (mask.cumsum(-1) - 1)[:, 2:]
    with torch.no_grad(), editing(lm, three, prefix=2):
        out: Any = lm.model(
            input_ids=ids[:, 2:],
            attention_mask=mask,
            position_ids=where,
            past_key_values=prefix,
            use_cache=True,
        )
    found = out.past_key_values, out.logits[:, -1]
    return _matches(lm, three, left, mask.sort(1).values, found, mask)


def _matches(
    lm: LanguageModel,
    three: Edit,
    ids: Tensor,
    mask: Tensor | None,
    found: tuple[Any, Tensor],
    own_mask: Tensor | None = None,
) -> bool:
    """Whether a cache and the logits before it are those of the prompts read whole.

    One more token on top is compared as well.
    """
    again, one = ids[:, -1:], None if mask is None else mask.new_ones(len(ids), 1)

    def read(tokens: Tensor, cache: Any, mask: Tensor | None) -> Any:
        where = {}
        if mask is not None:
            positions = (mask.cumsum(-1) - 1).clamp_min(0)[:, -tokens.shape[1] :]
            where = {"attention_mask": mask, "position_ids": positions}
        return lm.model(input_ids=tokens, past_key_values=cache, use_cache=True, **where)

    def longer(mask: Tensor | None) -> Tensor | None:
        return None if mask is None or one is None else torch.cat([mask, one], 1)

    cache, logits = found
    with torch.no_grad(), editing(lm, three):
        own = read(ids, None, mask)
        own_next = read(again, own.past_key_values, longer(mask))
        ours_next = read(again, cache, longer(own_mask))
    truth = own.logits[:, -1], own_next.logits[:, -1]
    ours = logits, ours_next.logits[:, -1]
    tolerance = 1e-4 if lm.dtype in (torch.float32, torch.float64) else 5e-2
    return all(
        bool((a - b.float()).norm() <= tolerance * b.norm())
        for a, b in zip(ours, truth, strict=True)
    )


def selectable(cache: Any) -> bool:
    """Whether rows of a cache can be taken and repeated."""
    layers = getattr(cache, "layers", [])
    needed = ("batch_select_indices", "batch_repeat_interleave")
    return bool(layers) and all(hasattr(layer, name) for layer in layers for name in needed)
