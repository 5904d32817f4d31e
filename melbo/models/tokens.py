"""Tokens that a forward pass is about: their places in their rows, and where replies begin."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from melbo.errors import MelboError
from melbo.models.changes import modules_around
from melbo.models.language_model import LanguageModel
from melbo.models.passes import NAMES, Before, Pass, for_rows, has_gaps, look_into

# arguments of ``generate`` that hold the prompt, in the order in which they are preferred
_ASKED = ("inputs_embeds", "input_ids", "inputs")


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
        self._before = Before()
        self._notes: dict[str, Any] = {}
        self._depth = 0
        self._found: Pass | None = None

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
        if not (lm.traits.left_padding and lm.traits.chunks):
            handles.append(around[-1].register_forward_pre_hook(self._refusing(lm)))
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
            self._before, self._notes, self._found = Before(), {}, None
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

    def _refusing(self, lm: LanguageModel) -> Callable[..., None]:
        """Pre-hook that refuses passes which the model itself gets wrong, edited or not."""

        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            asked = None if self._asked is None else self._asked[1]
            masks = (self._notes.get("mask"), asked)
            if not lm.traits.left_padding and any(m is not None and has_gaps(m) for m in masks):
                raise MelboError(
                    f"{lm.name} reads padding that stands before a token, so that replies depend "
                    "on it: give it rows of one length, or one row at a time"
                )
            if not lm.traits.chunks and self.length > 1 and (self._pass.lost or self.start):
                raise MelboError(
                    f"{lm.name} gets a prompt wrong that it reads in parts ({self.length} tokens "
                    "on a cache): leave prefill_chunk_size out, or read the prompt at once"
                )

        return hook

    def _take(self, given: dict[str, Any]) -> None:
        """Note what a module is called with; of masks, those that tell padding."""
        values = {
            key: next((given[name] for name in names if given.get(name) is not None), None)
            for key, names in NAMES.items()
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
    def _pass(self) -> Pass:
        """Places of the tokens of the pass."""
        if self._found is None:
            asked = None if self._asked is None else self._asked[1]
            self._found = Pass.of(self._notes, self._before, asked)
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
