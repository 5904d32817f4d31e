"""What many rows have in common is read once: a prompt, up to the block where vectors tell rows apart; and what all prompts begin with."""

import copy
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .edit import Edit, edit
from .model import LanguageModel
from .slice import Shared, map_arguments, repeat

_tried: WeakKeyDictionary[LanguageModel, dict[tuple, bool]] = WeakKeyDictionary()  # by kind of edit, layer, and whether prompts are split
_LEAST = 8  # tokens of a head that is worth it
_KEPT = 1024  # rows of heads that are kept at a time


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
        with torch.no_grad(), edit(lm, place, head=before):
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
    """What all of some prompts begin with, a system prompt for the most part, read once for each set of rows that are edited alike.

    Args:
        lm: The model.
        prompts: The prompts.
        place: How each is edited, row by row.
        alike: Of each, a number; rows of the same number are edited alike. By default all or none are.
    """

    def __init__(self, lm: LanguageModel, prompts: Sequence[Sequence[int]], place: Edit, alike: Sequence[int] | None = None) -> None:
        everywhere = place.rows(torch.tensor([0])) is place
        self.lm = lm
        self.alike = list(range(len(prompts))) if alike is None and not everywhere else [0] * len(prompts) if alike is None else alike
        self.ids = torch.tensor([_common(prompts)], dtype=torch.long)
        self._kept: dict[tuple[int, ...], Any] = {}
        # of rows that share nothing a head would only be read apart
        if len(set(self.alike)) == len(prompts) or self.ids.shape[1] < _LEAST or not can_read_once(lm, place, split=True):
            self.ids = self.ids[:, :0]

    def __len__(self) -> int:
        """How many tokens; 0 where nothing is read beforehand."""
        return self.ids.shape[1]

    def cache(self, batch: Sequence[int], place: Edit) -> Any:
        """A cache of the head for rows of these numbers, edited as ``place`` says: one row below the block where they part; None of no head."""
        if not len(self):
            return None
        key = tuple(self.alike[i] for i in batch)
        key = key[:1] if len(set(key)) == 1 else key
        if key not in self._kept:
            while sum(map(len, self._kept)) + len(key) > _KEPT and self._kept:
                del self._kept[next(iter(self._kept))]
            self._kept[key], _ = _read(self.lm, self.ids, place.rows(torch.arange(len(key))), len(key))
        cache = copy.deepcopy(self._kept[key])
        if len(key) < len(batch):
            for layer in cache.layers[self.lm.layer(place.layer) :]:
                layer.batch_repeat_interleave(len(batch))
        return cache

    def spread(self, batch: Sequence[int], place: Edit) -> Any:
        """The same for all rows throughout."""
        cache = self.cache(batch, place)
        if cache is not None:
            _spread(cache, self.lm.layer(place.layer), len(batch))
        return cache

    def forget(self) -> None:
        """Let go of what is kept."""
        self._kept.clear()


def _common(prompts: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that all prompts begin with, and that none of them ends with."""
    found = []
    for column in zip(*(prompt[:-1] for prompt in prompts), strict=False):
        if len(set(column)) > 1:
            break
        found.append(column[0])
    return found


def can_read_once(lm: LanguageModel, place: Edit, split: bool = False) -> bool:
    """Whether `read_once`, and one more token on top of it, give what rows of their own give: tried once on four tokens and three rows.

    ``split``: whether it does so in two passes.
    """
    if place.remembers or (split and not place.splits):
        return False
    tried = _tried.setdefault(lm, {})
    key = type(place), lm.layer(place.layer), split, *(type(e) for e in getattr(place, "edits", ()))
    if key not in tried:
        tried[key] = _try_reading_once(lm, place.rows(torch.arange(3)), 2 if split else 0)
    return tried[key]


def _try_reading_once(lm: LanguageModel, three: Edit, head: int) -> bool:
    ids = torch.arange(1, 5)[None].to(lm.device)
    again = ids[:, :1].expand(3, -1)
    try:
        before = _read(lm, ids[:, :head], three, 3)[0] if head else None
        cache, logits = read_once(lm, ids[:, head:], three, 3, copy.deepcopy(before))
        with torch.no_grad(), edit(lm, three):
            own: Any = lm.model(input_ids=ids.expand(3, -1), use_cache=True)
            truth = own.logits[:, -1], lm.model(input_ids=again, past_key_values=own.past_key_values, use_cache=True).logits[:, -1]
            found = logits, lm.model(input_ids=again, past_key_values=cache, use_cache=True).logits[:, -1]
    except Exception:  # whatever it is: rows of their own need none of this
        return False
    tolerance = 1e-4 if lm.dtype in (torch.float32, torch.float64) else 5e-2
    return all((a - b.float()).norm() <= tolerance * b.norm() for a, b in zip(found, truth, strict=True))


def selectable(cache: Any) -> bool:
    """Whether rows of a cache can be taken and repeated."""
    layers = getattr(cache, "layers", [])
    return bool(layers) and all(hasattr(layer, "batch_select_indices") and hasattr(layer, "batch_repeat_interleave") for layer in layers)
