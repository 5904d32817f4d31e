"""A prompt that many rows have in common is read once, up to the block where the vectors that steer them tell them apart."""

from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .model import LanguageModel
from .slice import Shared, map_arguments, repeat
from .steer import Add, edit

_tried: WeakKeyDictionary[LanguageModel, dict[int, bool]] = WeakKeyDictionary()  # by layer


def read_once(lm: LanguageModel, ids: Tensor, place: Add) -> tuple[Any, Tensor]:
    """Run one prompt for many rows, each steered by its own vector: the batch grows at the block where they part.

    Args:
        lm: A model that `can_read_once`.
        ids: The prompt ``[1, T]``.
        place: The edit, with a vector for every row, ``[rows, d]``.

    Returns:
        The cache of all rows, and their logits at the last token ``[rows, vocabulary]``.
    """
    rows, first = len(place.vectors), lm.layer(place.layer)
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


def can_read_once(lm: LanguageModel, place: Add) -> bool:
    """Whether `read_once`, and one more token on top of it, give what rows of their own give: tried once on four tokens and three vectors."""
    tried = _tried.setdefault(lm, {})
    if place.layer not in tried:
        tried[place.layer] = _try_reading_once(lm, place)
    return tried[place.layer]


def _try_reading_once(lm: LanguageModel, place: Add) -> bool:
    norm = place.vectors.norm(dim=-1).max().item() if len(place.vectors) else 1.0
    vectors = norm * torch.nn.functional.normalize(torch.randn(3, lm.width, generator=torch.Generator().manual_seed(0)), dim=-1)
    small = replace(place, vectors=vectors)
    ids = torch.arange(1, 5)[None].to(lm.device)
    again = ids[:, :1].expand(3, -1)
    try:
        cache, logits = read_once(lm, ids, small)
        with torch.no_grad(), edit(lm, small):
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
