"""One forward pass: what tells of it, and the places of its tokens."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from melbo.models.text.prompts import token_index

# names under which models take what is noted of a pass
NAMES = {
    "ids": ("input_ids", "inputs_embeds"),
    "mask": ("attention_mask",),
    "positions": ("position_ids",),
    "cache": ("past_key_values", "cache_params", "state", "mems", "layer_past"),
}


@dataclass(frozen=True)
class Before:
    """The passes before one.

    Attributes:
        end: Columns seen so far.
        real: Real tokens of each row among them ``[rows or 1, 1]``; None where there were none.
        ids: Tokens of the last pass, where it stood on nothing.
    """

    end: int = 0
    real: Tensor | None = None
    ids: Tensor | None = None


@dataclass(frozen=True)
class Pass:
    """Places of the tokens of one pass.

    Attributes:
        start: Column of the first token.
        index: See `Tokens.index`.
        ids: The tokens.
        lost: Whether ``start`` is not known.
    """

    start: int
    index: Tensor
    ids: Tensor | None
    lost: bool

    @classmethod
    def of(cls, notes: dict[str, Any], before: Before, asked: Tensor | None) -> "Pass":
        """Find the places from what modules were called with.

        Args:
            notes: See `Tokens`.
            before: The passes before.
            asked: Mask that ``generate`` was asked with, where it was.
        """
        ids, mask, length = notes.get("ids"), notes.get("mask"), notes.get("length", 1)
        start = _start(notes, before)
        lost = start is None
        start, end = start or 0, (start or 0) + length
        device = None if ids is None else ids.device
        rows = 1 if ids is None else len(ids)
        if mask is not None and mask.shape[1] >= end:
            index = token_index(mask[:, :end])[:, start:]
        elif mask is None and asked is not None and rows % len(asked) == 0:
            more = asked.new_ones(len(asked), max(0, end - asked.shape[1]))
            known = for_rows(torch.cat([asked, more], 1), rows)
            index = token_index(known[:, :end])[:, start:]
        elif mask is None and "made" in notes and "positions" in notes:
            # the mask was made ready beforehand, as with static caches
            index = _from_positions(notes["positions"])
        else:
            index = _counted_on(start, mask, length, before, rows, device)
        return cls(start, index, ids, lost)

    def after(self, before: Before) -> Before:
        """The passes before the next one."""
        real = self.index.max(1, keepdim=True).values + 1
        if self.start and before.real is not None and len(before.real) == len(real):
            real = torch.maximum(real, before.real.to(real))
        ids = self.ids if self.start == 0 else None
        return Before(self.start + self.index.shape[1], real, ids)


def _start(notes: dict[str, Any], before: Before) -> int | None:
    """Column of the first token, from whatever tells it; None where nothing does."""
    past: int | None = notes.get("past")
    state, mask = notes.get("state", False), notes.get("mask")
    covered: int | None = None if mask is None else mask.shape[1] - notes["length"]
    if covered is not None and covered <= 0 and (past or state):
        covered = None  # a mask of these tokens alone
    if covered is not None and past is not None and covered != past:
        # a mask made for more tokens to come, or a cache that keeps or counts but some
        return before.end if before.end in (covered, past) else int(covered)
    if covered is not None:
        return covered
    if past:
        return past
    positions = _first_position(notes.get("positions"))
    if state:
        return before.end if before.end else positions
    # a model may keep its state itself
    return before.end if positions and before.end >= positions else positions or 0


def _first_position(positions: Tensor | None) -> int | None:
    """Largest position of a row's first token; None where positions tell nothing."""
    if positions is None or positions.ndim < 2:
        return None
    return int(positions[..., 0].max()) or None


def _counted_on(
    start: int,
    mask: Tensor | None,
    length: int,
    before: Before,
    rows: int,
    device: torch.device | None,
) -> Tensor:
    """Index of the tokens, counted on from the passes before."""
    here = torch.ones(1, length, device=device) if mask is None else mask[:, -length:]
    here, shift = token_index(here), start
    real = before.real if start and start == before.end else None
    if real is not None and len(real) in (1, rows):
        return torch.where(here < 0, here, here + real.to(here))
    return torch.where(here < 0, here, here + shift)


def for_rows(mask: Tensor, rows: int) -> Tensor:
    """The mask that ``generate`` was asked with, for the rows that it made of each."""
    times = rows // len(mask)
    return mask.repeat_interleave(times, 0) if times > 1 else mask


def has_gaps(mask: Tensor) -> bool:
    """Tell whether padding stands before a real token in any row of a mask ``[n, T]``."""
    real = mask.bool()
    return bool((real[:, 1:] & ~real[:, :-1]).any())


def look_into(cache: Any, seen: int) -> tuple[int | None, bool]:
    """Number of tokens that a cache says it holds, or None, and whether it holds any.

    Args:
        cache: The cache or recurrent state.
        seen: Number of tokens seen so far, which decides for a cache of an unknown kind.
    """
    past = None
    if hasattr(cache, "get_seq_length"):
        try:
            past = int(cache.get_seq_length())
        except (ValueError, NotImplementedError, TypeError, IndexError):
            past = None
    if past:
        return past, True
    if isinstance(cache, (list, tuple, dict)):
        return past, len(cache) > 0
    layers = getattr(cache, "layers", None)
    holds = seen > 0 if layers is None else any(map(_filled, (cache, *layers)))
    # a length of 0 from a cache that holds something is none
    return (None if holds else past), holds


def _filled(part: Any) -> bool:
    """Tell whether a cache, or a layer of one, that says it holds no token does hold a state."""
    before = getattr(part, "has_previous_state", None)
    if isinstance(before, dict):
        return any(before.values())
    if isinstance(before, bool):
        return before
    if hasattr(part, "max_cache_len"):
        return False  # room for tokens to come
    own = (t for value in vars(part).values() for t in _flat(value))
    return any(isinstance(t, Tensor) and t.ndim > 1 and bool(t.any()) for t in own)


def _flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value.values()]
    return [*value] if isinstance(value, (list, tuple)) else [value]


def _from_positions(positions: Tensor) -> Tensor:
    """Indices from position ids; a position that the next one repeats is padding."""
    found = positions.reshape(-1, *positions.shape[-2:])[0].clone()
    found[:, :-1][found[:, 1:] <= found[:, :-1]] = -1
    return found
