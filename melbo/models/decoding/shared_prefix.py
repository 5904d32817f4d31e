"""Prompts and prefixes that are read once for many rows.

A prompt with many rows is read once up to the block where an edit tells rows apart. A prefix that
all prompts share (a system prompt for the most part) is read once for all rows edited alike.
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

#: Least number of tokens of a prefix that is worth reading on its own.
LEAST = 8
#: Rows of prefixes that are kept.
KEPT = 1024
# settings that limit how far a model looks back, counted with padding
_WINDOWS = ("sliding_window", "window_size", "attention_chunk_size")
# settings that make the rotation of keys depend on the length of the whole prompt
_LONG = ("original_max_position_embeddings",)

# results of trials, by trial, kind of edit and layer
_tried: WeakKeyDictionary[LanguageModel, dict[tuple[Any, ...], bool]] = WeakKeyDictionary()


def common_prefix(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Longest run of tokens that all prompts begin with and continue beyond."""
    found: list[int] = []
    for column in zip(*(prompt[:-1] for prompt in prompts), strict=False):
        if len(set(column)) > 1:
            break
        found.append(column[0])
    return found


@dataclass(frozen=True)
class Prefix:
    """The state after reading some tokens once, from which many rows go on.

    Attributes:
        cache: Key-value cache of the one row.
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
    """Read tokens once.

    Args:
        model: The model, as transformers has it.
        ids: The tokens ``[1, T]``.
        more: Passed on to the model.

    Returns:
        The prefix; None if the model's cache cannot be repeated for several rows.
    """
    out = model(input_ids=ids, use_cache=True, **more)
    cache = getattr(out, "past_key_values", None)
    return Prefix(cache, out.logits[:, -1]) if selectable(cache) else None


def read_once(
    lm: LanguageModel, ids: Tensor, edit: Edit, rows: int, prefix: Any = None
) -> tuple[Any, Tensor]:
    """Read one prompt for many rows that are edited differently.

    One row runs up to the first edited block, and all rows from there on.

    Args:
        lm: A model that passes `can_read_once`.
        ids: The prompt ``[1, T]``, or what follows its prefix.
        edit: The edit of the rows.
        rows: Number of rows.
        prefix: Cache of the prefix, with one row below the first edited block and all rows from
            there on (see `SharedPrefix.cache`). The pass writes into it.

    Returns:
        The cache of all rows, and their logits at the last token ``[rows, vocabulary]``.
    """
    cache, logits = _read(lm, ids, edit, rows, prefix)
    _spread(cache, lm.layer(edit.layer), rows)
    return cache, logits


def _read(
    lm: LanguageModel, ids: Tensor, edit: Edit, rows: int, prefix: Any = None
) -> tuple[Any, Tensor]:
    """Do as `read_once`, but leave one row in the cache below the first edited block."""
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

    whole = ids.shape[1] + (0 if prefix is None else int(prefix.get_seq_length()))
    handles = [
        lm.blocks[i].register_forward_pre_hook(part(i), with_kwargs=True)
        for i in range(first, lm.depth)
    ]
    try:
        with torch.no_grad(), editing(lm, edit, prompt=whole), lm.contiguous_head():
            keep = {"logits_to_keep": 1} if lm.model._supports_logits_to_keep() else {}
            ids = ids.to(lm.device)
            out = lm.model(input_ids=ids, past_key_values=prefix, use_cache=True, **keep)
    finally:
        for handle in handles:
            handle.remove()
    return out.past_key_values, out.logits[:, -1].float()


def _spread(cache: Any, first: int, rows: int) -> None:
    """Repeat, in place, the one row that a cache holds below block ``first``."""
    for layer in cache.layers[:first]:
        layer.batch_repeat_interleave(rows)


class SharedPrefix:
    """A prefix that all prompts share, read once for all rows that are edited alike.

    Args:
        lm: The model.
        prompts: The prompts, as token ids, one for each row.
        edit: The edit, row by row.
        alike: A number for each row, the same for rows that are edited alike. If left out, all rows
            count as alike when ``edit`` treats them so, and otherwise no two do.
        least: Least number of tokens of a prefix that is worth reading on its own.
        kept: Number of rows of prefixes that are kept.

    Attributes:
        ids: Tokens of the prefix ``[1, P]``; P = 0 if nothing is read beforehand.
        padded: Whether padding may stand between the prefix and the rest of a prompt.
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
        # where hardly any two rows are alike, a separate pass over the prefix saves nothing
        several = 2 * len(set(alike)) <= len(prompts)
        worth = len(tokens) >= least and several and can_split(lm, edit, len(prompts))
        self.ids = torch.tensor([tokens if worth else []], dtype=torch.long)
        self.padded = worth and can_split(lm, edit, len(prompts), padded=True)

    def __len__(self) -> int:
        """Number of tokens of the prefix; 0 if nothing is read beforehand."""
        return self.ids.shape[1]

    def length(self, prompts: Sequence[Sequence[int]]) -> int:
        """Number of prefix tokens that a batch of these prompts can skip.

        Prompts of different lengths have padding after the prefix; not every model allows that.
        """
        return len(self) if self.padded or len({len(prompt) for prompt in prompts}) == 1 else 0

    def cache(self, batch: Sequence[int], edit: Edit) -> Any:
        """Cache of the prefix for some rows, with one row below the first edited block.

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
        """Cache of the prefix for some rows, with all rows in every block.

        Args:
            batch: Numbers of the rows.
            edit: The edit of these rows.
        """
        cache = self.cache(batch, edit)
        _spread(cache, self.lm.layer(edit.layer), len(batch))
        return cache

    def forget(self) -> None:
        """Free the memory that prefixes take, and read nothing beforehand from now on."""
        self._kept.clear()
        self.ids = self.ids[:, :0]


def _same_for_all(edit: Edit) -> bool:
    """Tell whether an edit treats all rows alike."""
    return edit.rows(torch.tensor([0])) is edit


def _grown(cache: Any, first: int, which: Tensor) -> Any:
    """A copy of a cache with rows ``which`` from block ``first`` on, and the one row below it."""
    new = copy.copy(cache)
    # a shallow copy will do: layers replace their tensors and do not write into them
    new.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in new.layers[first:]:
        layer.batch_select_indices(which)
    return new


def can_read_once(lm: LanguageModel, edit: Edit) -> bool:
    """Tell whether `read_once`, and one token on top, agree with rows that are read separately.

    This is tried on four tokens and three rows, once for each model and kind of edit.

    Args:
        lm: The model.
        edit: The edit of the rows.
    """
    return lm.traits.resumes and not edit.stateful and _tried_once(lm, edit, 3, _try_reading_once)


def can_split(lm: LanguageModel, edit: Edit, rows: int, padded: bool = False) -> bool:
    """Tell whether a prompt read in two passes agrees with the same prompt read in one.

    This is tried on four or five tokens and three rows, once for each model and kind of edit.

    Args:
        lm: The model.
        edit: The edit of the rows.
        rows: Number of rows.
        padded: Whether padding may stand between the two parts.
    """
    config = lm.model.config.get_text_config()
    if not lm.traits.resumes or not edit.prefix_safe or edit.stateful:
        return False
    if any(getattr(config, n, None) for n in _LONG):
        return False
    if padded and any(getattr(config, name, None) for name in _WINDOWS):
        # windows count padding too, and so short a trial would not show it
        return False
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
        except Exception:
            # whatever it is, reading rows separately always works
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
        # recurrent states, from which only one row could go on
        return False
    kept = _grown(prefix, first, torch.tensor([0, 1, 2], device=lm.device))
    found = read_once(lm, ids[:, 2:], three, 3, kept)
    return _matches(lm, three, ids.expand(3, -1), None, found)


def _try_padding(lm: LanguageModel, three: Edit) -> bool:
    ids = torch.arange(1, 6, device=lm.device).expand(3, -1)
    mask = torch.ones(3, 5, dtype=torch.long, device=lm.device)
    # row 1 has padding after the prefix; in ``left`` the same row is padded on the left
    mask[1, 2] = 0
    left = ids.clone()
    left[1, :3], left[1, 0] = ids[1, [0, 0, 1]], lm.pad
    prefix, first = _read(lm, ids[:1, :2], three, 3)[0], lm.layer(three.layer)
    _spread(prefix, first, 3)
    where = (mask.cumsum(-1) - 1)[:, 2:]
    with torch.no_grad(), editing(lm, three, prompt=5):
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
    """Tell whether a cache and the logits at its end agree with those of prompts read whole.

    One more token on top is compared as well.

    Args:
        lm: The model.
        three: The edit of three rows.
        ids: The prompts read whole ``[3, T]``.
        mask: Mask of their real tokens ``[3, T]``; None where all are real.
        found: Cache, and logits ``[3, vocabulary]``.
        own_mask: Mask of the real tokens in that cache; None where all are real.
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
    with torch.no_grad(), editing(lm, three, prompt=ids.shape[1]):
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
    """Tell whether rows of a cache can be selected and repeated."""
    layers = getattr(cache, "layers", [])
    needed = ("batch_select_indices", "batch_repeat_interleave")
    return bool(layers) and all(hasattr(layer, name) for layer in layers for name in needed)
