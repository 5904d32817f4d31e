"""A prompt that many rows have in common is read once, up to the block where the vectors that steer them tell them apart."""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .edit import Edit, edit
from .model import LanguageModel
from .slice import Shared, map_arguments, repeat

_tried: WeakKeyDictionary[LanguageModel, dict[tuple, bool]] = WeakKeyDictionary()  # by kind of edit and layer


def read_once(lm: LanguageModel, ids: Tensor, place: Edit, rows: int) -> tuple[Any, Tensor]:
    """Run one prompt for many rows, each steered in its own way: the batch grows at the block where they part.

    Args:
        lm: A model that `can_read_once`.
        ids: The prompt ``[1, T]``.
        place: The edit.
        rows: How many.

    Returns:
        The cache of all rows, and their logits at the last token ``[rows, vocabulary]``.
    """
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

    handles = [lm.blocks[i].register_forward_pre_hook(part(i), with_kwargs=True) for i in range(first, lm.depth)]
    try:
        with torch.no_grad(), edit(lm, place):
            keep = {"logits_to_keep": 1} if lm.model._supports_logits_to_keep() else {}
            out = lm.model(input_ids=ids.to(lm.device), use_cache=True, **keep)
    finally:
        for handle in handles:
            handle.remove()
    cache: Any = out.past_key_values
    for layer in cache.layers[:first]:
        layer.batch_repeat_interleave(rows)
    return cache, out.logits[:, -1].float()


def can_read_once(lm: LanguageModel, place: Edit) -> bool:
    """Whether `read_once`, and one more token on top of it, give what rows of their own give: tried once on four tokens and three rows."""
    if place.remembers:
        return False
    tried = _tried.setdefault(lm, {})
    key = type(place), lm.layer(place.layer), *(type(e) for e in getattr(place, "edits", ()))
    if key not in tried:
        tried[key] = _try_reading_once(lm, place.rows(torch.arange(3)))
    return tried[key]


def _try_reading_once(lm: LanguageModel, three: Edit) -> bool:
    ids = torch.arange(1, 5)[None].to(lm.device)
    again = ids[:, :1].expand(3, -1)
    try:
        cache, logits = read_once(lm, ids, three, 3)
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
