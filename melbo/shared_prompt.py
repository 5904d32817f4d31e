"""What many rows have in common is read once: a prompt, up to the block where vectors tell rows apart; and what all prompts begin with."""

import copy
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from .edit import Edit, edit
from .model import LanguageModel
from .slice import Shared, map_arguments, repeat

_tried: WeakKeyDictionary[LanguageModel, dict[tuple, bool]] = WeakKeyDictionary()  # by trial, kind of edit and layer
_LEAST = 8  # tokens of a head that is worth it
_KEPT = 1024  # rows of heads that are kept
_WINDOWS = "sliding_window", "window_size", "attention_chunk_size"  # settings of models that look so many tokens back, padding included
_LONG = ("original_max_position_embeddings",)  # of models that rotate keys by how long the whole prompt is


def read_once(lm: LanguageModel, ids: Tensor, place: Edit, rows: int, head: Any = None) -> tuple[Any, Tensor]:
    """Run one prompt for many rows, each steered in its own way: the batch grows at the block where they part.

    Args:
        lm: A model that `can_read_once`.
        ids: The prompt ``[1, T]``, or the rest of it.
        place: The edit.
        rows: How many.
        head: The cache of what stands before, a row below the block where the rows part and all rows from there on (see `Heads`); it grows.

    Returns:
        The cache of all rows, and their logits at the last token ``[rows, vocabulary]``.
    """
    cache, logits = _read(lm, ids, place, rows, head)
    _spread(cache, lm.layer(place.layer), rows)
    return cache, logits


def _read(lm: LanguageModel, ids: Tensor, place: Edit, rows: int, head: Any = None) -> tuple[Any, Tensor]:
    """As `read_once`, with one row in the cache below the block where they part."""
    first = lm.layer(place.layer)
    shared: Shared = {}

    def part(index: int):
        def hook(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            hidden = args[0] if args else kwargs["hidden_states"]
            hidden = hidden.expand(rows, -1, -1) if index == first else hidden
            rest = {k: v for k, v in kwargs.items() if k != "hidden_states"}
            more, rest = map_arguments(index, args[1:], rest, lambda path, tensor: repeat(tensor, rows, lm.axes.batch.get(path)), shared)
            return ((hidden, *more), rest) if args else ((), {**rest, "hidden_states": hidden})

        return hook

    before = 0 if head is None else int(head.get_seq_length())
    handles = [lm.blocks[i].register_forward_pre_hook(part(i), with_kwargs=True) for i in range(first, lm.depth)]
    try:
        with torch.no_grad(), edit(lm, place, head=before), lm.contiguous_head():
            keep = {"logits_to_keep": 1} if lm.model._supports_logits_to_keep() else {}
            out = lm.model(input_ids=ids.to(lm.device), past_key_values=head, use_cache=True, **keep)
    finally:
        for handle in handles:
            handle.remove()
    return out.past_key_values, out.logits[:, -1].float()


def _spread(cache: Any, first: int, rows: int) -> None:
    """Repeat the one row that a cache holds below a block."""
    for layer in cache.layers[:first]:
        layer.batch_repeat_interleave(rows)


class Heads:
    """What all of some prompts begin with, a system prompt for the most part, read once for rows that are edited alike.

    Args:
        lm: The model.
        prompts: The prompts.
        place: How each is edited, row by row.
        alike: Of each a number, the same of rows that are edited alike. By default all are, or none, as ``place`` says.
    """

    def __init__(self, lm: LanguageModel, prompts: Sequence[Sequence[int]], place: Edit, alike: Sequence[int] | None = None) -> None:
        if alike is None:
            alike = [0] * len(prompts) if _everywhere(place) else range(len(prompts))
        self.lm, self.alike = lm, alike
        self._kept: dict[tuple[int, ...], Any] = {}
        tokens = _common(prompts)
        # where no two rows are alike, a head would only be read apart
        worth = len(tokens) >= _LEAST and 2 * len(set(alike)) <= len(prompts) and can_split(lm, place, len(prompts))
        self.ids = torch.tensor([tokens if worth else []], dtype=torch.long)
        self.padded = worth and can_split(lm, place, len(prompts), padded=True)

    def __len__(self) -> int:
        """How many tokens; 0 where nothing is read beforehand."""
        return self.ids.shape[1]

    def length(self, prompts: Sequence[Sequence[int]]) -> int:
        """The same for a batch of these prompts: padding would stand between head and rest, which not every model reads past."""
        return len(self) if self.padded or len({len(prompt) for prompt in prompts}) == 1 else 0

    def cache(self, batch: Sequence[int], place: Edit) -> Any:
        """A cache of the head for rows of these numbers, edited as ``place`` says: one row below the block where they part."""
        numbers = [self.alike[i] for i in batch]
        key = tuple(sorted(set(numbers)))
        kept = self._kept.get(key)
        if kept is None:
            kept, _ = _read(self.lm, self.ids, place.rows(torch.tensor([numbers.index(number) for number in key])), len(key))
            if sum(map(len, self._kept)) + len(key) <= _KEPT:
                self._kept[key] = kept
        return _grown(kept, self.lm.layer(place.layer), torch.tensor([key.index(number) for number in numbers], device=self.lm.device))

    def spread(self, batch: Sequence[int], place: Edit) -> Any:
        """The same for all rows throughout."""
        cache = self.cache(batch, place)
        _spread(cache, self.lm.layer(place.layer), len(batch))
        return cache

    def forget(self) -> None:
        """Let go of what is kept, and read nothing beforehand from now on."""
        self._kept.clear()
        self.ids = self.ids[:, :0]


def _everywhere(place: Edit) -> bool:
    """Whether an edit treats all rows alike."""
    return place.rows(torch.tensor([0])) is place


def _grown(cache: Any, first: int, which: Tensor) -> Any:
    """A copy of a cache with these rows from a block on, and the one row below it."""
    new = copy.copy(cache)
    new.layers = [copy.copy(layer) for layer in cache.layers]  # layers replace what they hold, they do not write into it
    for layer in new.layers[first:]:
        layer.batch_select_indices(which)
    return new


def _common(prompts: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that all prompts begin with, and that none of them ends with."""
    found = []
    for column in zip(*(prompt[:-1] for prompt in prompts), strict=False):
        if len(set(column)) > 1:
            break
        found.append(column[0])
    return found


def can_read_once(lm: LanguageModel, place: Edit) -> bool:
    """Whether `read_once`, and one more token on top of it, give what rows of their own give: tried once on four tokens and three rows."""
    return not place.remembers and _tried_once(lm, place, 3, _try_reading_once)


def can_split(lm: LanguageModel, place: Edit, rows: int, padded: bool = False) -> bool:
    """Whether a prompt that is read in two passes is what it is in one: tried once on four tokens and three rows.

    Args:
        lm: The model.
        place: How the rows are edited.
        rows: How many there are.
        padded: Also with padding between the two.
    """
    config = lm.model.config.get_text_config()
    if not place.splits or place.remembers or any(getattr(config, name, None) for name in _LONG):
        return False
    if padded and any(getattr(config, name, None) for name in _WINDOWS):
        return False  # they count padding, which four tokens would not show
    return _tried_once(lm, place, rows, _try_padding if padded else _try_splitting)


def _tried_once(lm: LanguageModel, place: Edit, rows: int, trial: Callable[[LanguageModel, Edit], bool]) -> bool:
    tried = _tried.setdefault(lm, {})
    key = trial, type(place), lm.layer(place.layer), *(type(e) for e in getattr(place, "edits", ()))
    if key not in tried:
        try:
            tried[key] = trial(lm, place.rows(torch.arange(3) % rows))
        except Exception:  # whatever it is: rows of their own need none of this
            tried[key] = False
    return tried[key]


def _try_reading_once(lm: LanguageModel, three: Edit) -> bool:
    ids = torch.arange(1, 5, device=lm.device)[None]
    cache, logits = read_once(lm, ids, three, 3)
    return _matches(lm, three, ids.expand(3, -1), None, (cache, logits))


def _try_splitting(lm: LanguageModel, three: Edit) -> bool:
    ids = torch.arange(1, 5, device=lm.device)[None]
    head, first = _read(lm, ids[:, :2], three, 3)[0], lm.layer(three.layer)
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in head.layers):
        return False  # states, which a second row of the same head cannot begin from
    kept = _grown(head, first, torch.tensor([0, 1, 2], device=lm.device))
    found = read_once(lm, ids[:, 2:], three, 3, kept)
    return _matches(lm, three, ids.expand(3, -1), None, found)


def _try_padding(lm: LanguageModel, three: Edit) -> bool:
    ids = torch.arange(1, 6, device=lm.device).expand(3, -1)
    mask = torch.ones(3, 5, dtype=torch.long, device=lm.device)
    mask[1, 2] = 0  # after the head
    left = ids.clone()
    left[1, :3], left[1, 0] = ids[1, [0, 0, 1]], lm.pad  # the same row, padded on the left
    head, first = _read(lm, ids[:1, :2], three, 3)[0], lm.layer(three.layer)
    _spread(head, first, 3)
    where = (mask.cumsum(-1) - 1)[:, 2:]
    with torch.no_grad(), edit(lm, three, head=2):
        out: Any = lm.model(input_ids=ids[:, 2:], attention_mask=mask, position_ids=where, past_key_values=head, use_cache=True)
    return _matches(lm, three, left, mask.sort(1).values, (out.past_key_values, out.logits[:, -1]), mask)


def _matches(lm: LanguageModel, three: Edit, ids: Tensor, mask: Tensor | None, found: tuple[Any, Tensor], own_mask: Tensor | None = None) -> bool:
    """Whether a cache and the logits before it are those of these prompts read whole, one more token on top included."""
    again, one = ids[:, -1:], None if mask is None else mask.new_ones(len(ids), 1)

    def read(tokens: Tensor, cache: Any, mask: Tensor | None) -> Any:
        where = {} if mask is None else {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp_min(0)[:, -tokens.shape[1] :]}
        return lm.model(input_ids=tokens, past_key_values=cache, use_cache=True, **where)

    def longer(mask: Tensor | None) -> Tensor | None:
        return None if mask is None or one is None else torch.cat([mask, one], 1)

    cache, logits = found
    with torch.no_grad(), edit(lm, three):
        own = read(ids, None, mask)
        truth = own.logits[:, -1], read(again, own.past_key_values, longer(mask)).logits[:, -1]
        ours = logits, read(again, cache, longer(own_mask)).logits[:, -1]
    tolerance = 1e-4 if lm.dtype in (torch.float32, torch.float64) else 5e-2
    return all((a - b.float()).norm() <= tolerance * b.norm() for a, b in zip(ours, truth, strict=True))


def selectable(cache: Any) -> bool:
    """Whether rows of a cache can be taken and repeated."""
    layers = getattr(cache, "layers", [])
    return bool(layers) and all(hasattr(layer, "batch_select_indices") and hasattr(layer, "batch_repeat_interleave") for layer in layers)
