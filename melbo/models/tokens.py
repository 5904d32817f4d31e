"""Tokens that a forward pass is about: their places in their rows, and where replies begin."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from melbo.errors import MelboError
from melbo.models.changes import modules_around
from melbo.models.language_model import LanguageModel
from melbo.models.text.prompts import token_index

# names under which models take what is noted of a pass
_NAMES = {
    "ids": ("input_ids", "inputs_embeds"),
    "mask": ("attention_mask",),
    "positions": ("position_ids",),
    "cache": ("past_key_values", "cache_params", "state", "mems", "layer_past"),
}


class Tokens:
    """Notes of the forward passes of a model, taken by hooks as the passes run.

    A token has a *column*, its place in the padded batch, and an *index*, its place among the real
    tokens of its row. What stands before a pass is told by its mask, by its cache, or by the passes
    before; prompt and reply by what ``generate`` was asked with.

    Args:
        prompt: Number of columns of the prompt; None to take it from ``generate``, and otherwise
            to count as prompt what stands on no cache.

    """

    def __init__(self, prompt: int | None = None) -> None:
        self._fixed = prompt
        self._asked: tuple[int, Tensor | None] | None = None
        self._before = _Before()
        self._notes: dict[str, Any] = {}
        self._depth = 0
        self._found: _Pass | None = None

    @property
    def prompt(self) -> int | None:
        """Number of columns of the prompt; None where nobody has said."""
        if self._fixed is not None:
            return self._fixed
        return None if self._asked is None else self._asked[0]

    @property
    def index(self) -> Tensor:
        """Place of each token among the real ones of its row, −1 on padding ``[rows or 1, T]``.

        Raises:
            MelboError: The pass stands on a state that tells no length, and there is no mask.
        """
        if self._pass.lost:
            raise MelboError(
                "a pass stands on a state that does not tell how many tokens it holds: "
                "pass attention_mask for all of them, or read the prompt inside the with block"
            )
        return self._pass.index

    @property
    def start(self) -> int:
        """Column of the first token of the pass."""
        return self._pass.start

    @property
    def length(self) -> int:
        """Number of columns T of the pass."""
        return self._pass.index.shape[1]

    @property
    def read(self) -> int:
        """Number of the pass's columns, from its first, that belong to the prompt."""
        if self.prompt is None:
            return 0 if self.start else self.length
        return min(max(self.prompt - self.start, 0), self.length)

    @property
    def whole(self) -> bool:
        """Tell whether the pass holds the whole prompt."""
        return self.start == 0 and self.read >= (self.prompt or 0)

    def split(self) -> int:
        """Number of prompt columns, as `read`, where it is sure.

        Raises:
            MelboError: Nobody has said how long the prompt is, and the pass may be either: several
                tokens on a cache, or the tokens of the pass before and one more, without a cache.
        """
        self.index  # noqa: B018 (refuses where it is not known)
        if self.prompt is None and (self._grows() or (self.start and self.length > 1)):
            how = f"{self.length} tokens on a cache" if self.start else "one token more, no cache"
            raise MelboError(
                f"cannot tell prompt from reply in a pass of {how}: use generate, "
                "or say edit(lm, ..., prompt=number of prompt tokens)"
            )
        return self.read

    def last_of_prompt(self) -> Tensor:
        """Index of the last token of each row's prompt ``[rows or 1, 1]``, as a prompt is read.

        Raises:
            MelboError: A row has only padding so far, and its prompt goes on in another pass.
        """
        mask = None if self._asked is None else self._asked[1]
        if mask is not None and self._asked is not None and self._asked[0] == self.prompt:
            return for_rows(mask, len(self.index)).long().sum(1, keepdim=True) - 1
        last = self.index[:, : self.read].max(1, keepdim=True).values
        beyond = max(0, (self.prompt or 0) - self.start - self.length)
        if beyond and bool((last < 0).any()):
            raise MelboError(
                "cannot tell where a prompt ends that is read in parts: "
                "pass attention_mask to generate, or leave prefill_chunk_size out"
            )
        return last + beyond

    @contextmanager
    def watching(self, lm: LanguageModel) -> Iterator[None]:
        """Follow the passes of a model inside the ``with`` block.

        All modules around the blocks are listened to: models call them in different ways, and the
        outer ones see masks that the inner ones get ready-made.
        """
        around = modules_around(lm.model, lm.blocks) or [lm.model]
        asked = [m for m in around if callable(getattr(type(m), "generate", None))]
        own = [(m, m.__dict__.get("generate")) for m in asked]
        handles = [
            module.register_forward_pre_hook(self._noting(depth, module), with_kwargs=True)
            for depth, module in enumerate(around)
        ]
        for module in asked:
            own_generate: Any = module.generate
            object.__setattr__(module, "generate", self._asking(own_generate))
        try:
            yield
        finally:
            for module, before in own:
                del module.__dict__["generate"]
                if before is not None:
                    module.__dict__["generate"] = before
            for handle in handles:
                handle.remove()

    def _asking(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        """The same ``generate``, with a note of the prompt that it is asked with."""

        @wraps(generate)
        def asked(*args: Any, **kwargs: Any) -> Any:
            given = next((kwargs[n] for n in _ASKED if kwargs.get(n) is not None), None)
            given = args[0] if given is None and args else given
            mask = kwargs.get("attention_mask")
            mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
            length = given.shape[1] if isinstance(given, Tensor) else 1
            length = length if mask is None else max(length, mask.shape[1])
            before, self._asked = self._asked, (length, mask)
            # another conversation begins
            self._before, self._notes, self._found = _Before(), {}, None
            try:
                return generate(*args, **kwargs)
            finally:
                self._asked = before

        return asked

    def _noting(self, depth: int, module: nn.Module) -> Callable[..., None]:
        """Pre-hook on a module around the blocks; outer ones are called first."""
        names = list(inspect.signature(module.forward).parameters)

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if depth <= self._depth:  # another pass begins
                if self._notes:
                    self._before = self._pass.after(self._before)
                self._notes = {}
            self._depth, self._found = depth, None
            self._take({**dict(zip(names, args, strict=False)), **kwargs})

        return hook

    def _take(self, given: dict[str, Any]) -> None:
        """Note what a module is called with; of masks, those that tell padding."""
        values = {
            key: next((given[name] for name in names if given.get(name) is not None), None)
            for key, names in _NAMES.items()
        }
        notes, ids, mask = self._notes, values["ids"], values["mask"]
        if isinstance(ids, Tensor):
            notes["length"] = ids.shape[1]
            notes.setdefault("ids", ids)
        if isinstance(mask, Tensor) and mask.ndim == 2:
            notes["mask"] = mask
        elif mask is not None:
            notes["made"] = True
        if isinstance(values["positions"], Tensor):
            notes["positions"] = values["positions"]
        if values["cache"] is not None:
            # now, as the pass will fill it
            notes["past"], notes["state"] = look_into(values["cache"], self._before.end)

    @property
    def _pass(self) -> "_Pass":
        """Places of the tokens of the pass."""
        if self._found is None:
            asked = None if self._asked is None else self._asked[1]
            self._found = _Pass.of(self._notes, self._before, asked)
        return self._found

    def _grows(self) -> bool:
        """Tell whether the pass is the one before with one token more, without a cache."""
        old, new = self._before.ids, self._notes.get("ids")
        return (
            isinstance(old, Tensor)
            and isinstance(new, Tensor)
            and self.start == 0
            and new.shape[:2] == (old.shape[0], old.shape[1] + 1)
            and new.ndim == old.ndim
            and torch.equal(new[:, :-1], old)
        )


@dataclass(frozen=True)
class _Before:
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
class _Pass:
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
    def of(cls, notes: dict[str, Any], before: _Before, asked: Tensor | None) -> "_Pass":
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

    def after(self, before: _Before) -> _Before:
        """The passes before the next one."""
        real = self.index.max(1, keepdim=True).values + 1
        if self.start and before.real is not None and len(before.real) == len(real):
            real = torch.maximum(real, before.real.to(real))
        ids = self.ids if self.start == 0 else None
        return _Before(self.start + self.index.shape[1], real, ids)


def _start(notes: dict[str, Any], before: _Before) -> int | None:
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
    before: _Before,
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


# arguments of ``generate`` that hold the prompt, in the order in which they are preferred
_ASKED = ("inputs_embeds", "input_ids", "inputs")


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
