"""Δ of a language model, whatever it is that perturbs it: a slice replayed, read late, averaged."""

from abc import abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any, Literal, Self

import torch
from torch import Tensor

from melbo.errors import MelboError
from melbo.maps.base import Map, Piece
from melbo.maps.memory import bytes_kept, tokens_that_fit
from melbo.maps.smooth import forward_mode
from melbo.maps.unchanged import (
    check_hooks,
    hooks_matter,
    require_derivatives_of_edits,
    same_pass,
    snapshot,
)
from melbo.models.compiled import WORTH, call_compiled
from melbo.models.language_model import LanguageModel
from melbo.models.last_tokens import KeysValues, Tail, find_tail
from melbo.models.placement import Placement
from melbo.models.replay import Run, Slice, call_block
from melbo.models.text.prompts import Prompts, pad_rows, require_prompts, token_index
from melbo.models.weights.output_matrices import added_by, attention_output
from melbo.models.weights.packed import require_derivatives

Read = Literal["stream", "attention"]


class ModelMap(Map):
    """θ ↦ mean over prompts and target positions of h_target under θ − h_target.

    The unsteered pass runs once, on construction. Subclasses say how θ enters (docs/method.md §1).
    A map is of the model as it is at that moment, with the edits and hooks that it has; θ comes on
    top of them. It refuses to be used once they have changed.

    Args:
        lm: The model.
        prompts: Prompts that it reads.
        placement: Layers and tokens.
        d_source: Width of θ.
        normalise_target: Whether to read h/‖h‖ × (mean ‖h‖ of the unsteered run) for every h.
        concatenate: Whether prompts and target positions are stacked instead of averaged.
        read: ``"stream"``, or ``"attention"`` for what attention adds to the stream.
        prompt_batch: Number of prompts that run side by side; None chooses it by length.
        tokens_per_pass: Tokens that run through the blocks at a time; None measures what fits.
        compile: Whether blocks are compiled where a backward pass follows; None compiles them once
            that pays.

    Attributes:
        groups: Indices of the prompts that run side by side.
        slices: The captured slice of each group.
        target_norm: Mean ‖h‖ of what is read in the unsteered run.

    Raises:
        MelboError: Settings make no sense, a prompt is shorter than ``target_tokens`` (or has
            nothing to steer), hidden states are not finite, the attention to be read is not found,
            hooks on the blocks do something else when these are replayed, or quantised weights
            have no derivative.
    """

    # tokens that share a piece: on a CPU products that are larger are no faster
    _side_by_side: int = 320
    # floating-point operations after which compiling pays
    _worth_compiling: float = WORTH
    _compiled: Run = staticmethod(call_compiled)

    def __init__(
        self,
        lm: LanguageModel,
        prompts: Prompts,
        placement: Placement,
        d_source: int,
        *,
        normalise_target: bool,
        concatenate: bool,
        read: Read,
        prompt_batch: int | None,
        tokens_per_pass: int | None,
        compile: bool | None,
    ) -> None:
        require_prompts(prompts=prompts)
        placement.check([*map(len, prompts.tokens)])
        if prompt_batch is not None and prompt_batch < 1:
            raise MelboError(f"prompt_batch is {prompt_batch}: expected at least 1")
        if read not in ("stream", "attention"):
            raise MelboError(f"read is {read!r}: expected 'stream' or 'attention'")
        self.lm, self.prompts, self.placement, self.read = lm, prompts, placement, read
        self.normalise_target, self.concatenate = normalise_target, concatenate
        self.prompt_batch, self.compile = prompt_batch, compile

        self._last_run: Run | None = None
        if read == "attention":
            self._last_run = added_by(attention_output(lm, self.target - 1))
        self.groups = self._groups(tokens_per_pass)
        self.slices = [self._capture(group) for group in self.groups]
        require_derivatives(self.slices[0])
        self._captured = snapshot(lm, self.target)
        self._under_hooks = self._captured.hooked and self._hooks_matter()
        first = self.slices[0].hidden
        self.device = first.device
        self.dtype = first.dtype if first.dtype == torch.float64 else torch.float32
        self.d_source = d_source
        self.d_target = prod(self.response_shape)
        self.source_norm, self.target_norm = self._norms()
        # spent uncompiled on passes with a backward pass, as far as weights go
        self._plain_flops: float = 0.0
        blocks = [call.block for call in self.slices[0].calls]
        self._num_weights = sum(p.numel() for block in blocks for p in block.parameters())
        self._pieces = self._make_pieces()
        self.tokens_per_pass = tokens_per_pass or self._usual_tokens()

    @property
    def source(self) -> int:
        """Layer that is perturbed, or the first that is edited."""
        return self.placement.source

    @property
    def target(self) -> int:
        """Layer that is read."""
        return self.placement.target

    @property
    def pieces(self) -> Sequence[Piece]:
        """One piece for every group of prompts.

        Raises:
            MelboError: The model has changed since the map was made.
        """
        self._require_as_captured()
        return self._pieces

    @property
    def response_shape(self) -> tuple[int, int, int]:
        """See `Map.response_shape`."""
        if not self.concatenate:
            return 1, 1, self.lm.width
        return len(self.prompts), self.placement.target_tokens, self.lm.width

    def describe(self) -> dict[str, Any]:
        """See `Map.describe`; `from_description` is the inverse."""
        return {
            **super().describe(),
            **self.placement.describe(),
            "read": self.read,
            "normalise_target": self.normalise_target,
            "concatenate": self.concatenate,
            "source_norm": self.source_norm,
            "prompts": self.prompts.describe(),
            "model": self.lm.describe(),
            **({"hooked": True} if self._under_hooks else {}),
        }

    @classmethod
    @abstractmethod
    def from_description(cls, lm: LanguageModel, saved: Mapping[str, Any]) -> Self:
        """Make a map again.

        Args:
            lm: The model that the map was made on.
            saved: Result of `describe`; settings that it lacks take their defaults.
        """

    def locate_nonfinite(self, theta: Tensor) -> str:
        """See `Map.locate_nonfinite`; names the layer."""
        theta = theta.to(self.device, self.dtype)
        for part in self.slices:
            with torch.no_grad(), self._editing(theta):
                for layer, hidden in part.trace(self._entering(part, theta)):
                    if not torch.isfinite(hidden[part.mask.to(hidden.device)]).all():
                        added = self.read == "attention" and layer == self.target
                        what = "what attention adds to " if added else ""
                        return f"{what}hidden_states[{layer}] of the steered model"
        return "the response"

    def value_and_vjp(
        self, theta: Tensor, cotangent: Tensor | Callable[[Tensor, slice], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """See `Map.value_and_vjp`.

        Raises:
            MelboError: The model is under an edit through which derivatives are wrong.
        """
        require_derivatives_of_edits(self.slices[0], self.lm.name)
        return super().value_and_vjp(theta, cotangent)

    @contextmanager
    def uncompiled(self) -> Generator[None, None, None]:
        """Run blocks uncompiled inside the ``with`` block."""
        before, self.compile = self.compile, False
        try:
            yield
        finally:
            self.compile = before

    @contextmanager
    def _forward_mode(self) -> Generator[None, None, None]:
        """See `forward_mode`; mixtures of experts run in the one formulation that has it.

        transformers reads that setting at every call.

        Raises:
            MelboError: The model is under an edit through which derivatives are wrong.
        """
        self._require_as_captured()
        require_derivatives_of_edits(self.slices[0], self.lm.name)
        config, name = self.lm.config, "_experts_implementation"
        before = getattr(config, name, None)
        if before is not None:
            setattr(config, name, "batched_mm")
        try:
            with self.uncompiled(), forward_mode():
                yield
        finally:
            if before is not None:
                setattr(config, name, before)

    def _groups(self, tokens_per_pass: int | None) -> list[list[int]]:
        """Indices of the prompts that run side by side.

        A pass takes every prompt with as many directions as fit it: with many prompts these are
        few, and products of a single prompt would be small. Padding costs less than that. But it
        also keeps the last block, or with ``positions="target"`` every block, from running on the
        last tokens only.
        """
        if self.prompt_batch is not None:
            every, size = list(range(len(self.prompts))), self.prompt_batch
            return [every[i : i + size] for i in range(0, len(every), size)]
        many = sum(map(len, self.prompts.tokens)) > self._side_by_side
        most = min(self._side_by_side, tokens_per_pass or self._side_by_side)
        padding = 1 / 8 if many and self.placement.positions == "all" else 0
        return self.prompts.by_length(most, padding)

    def _capture(self, group: list[int]) -> Slice:
        """The slice that these prompts pass through; its output is what is read."""
        # padded on the right: no real token of a causal model sees what stands after it
        ids, mask = pad_rows([self.prompts.tokens[i] for i in group], self.lm.pad, side="right")
        part = self.lm.capture(ids, mask, self.source, self.target)
        if part.hooked:
            check_hooks(part)
        if self._last_run is None:
            return part
        *before, last = part.calls
        part = replace(part, calls=(*before, replace(last, run=self._last_run)))
        with torch.no_grad():
            return replace(part, output=part.replay(part.hidden))

    def _require_as_captured(self) -> None:
        """Refuse a model that has changed since the map was made.

        Weights that were put back, and hooks that only look on, are told from others by running the
        model again.

        Raises:
            MelboError: The model has changed.
        """
        change = self._captured.change()
        if change is None:
            return
        now = snapshot(self.lm, self.target)
        same = change == "weights" or (change == "hooks" and not self._under_hooks)
        same = same and all(map(same_pass, map(self._capture, self.groups), self.slices))
        if not same or (change == "hooks" and now.hooked and self._hooks_matter()):
            raise MelboError(
                f"the {change} of {self.lm.name} are not those with which this map was made: "
                "make the map again as the model is now, or use it as the model was then"
            )
        self._captured = now

    def _hooks_matter(self) -> bool:
        """Tell whether hooks up to the target do more than look on."""
        modules = self._captured.modules
        return any(hooks_matter(modules, partial(self._capture, g)) for g in self.groups)

    def _usual_tokens(self) -> int:
        """Tokens per pass that fit in memory.

        What a token keeps for the backward pass is measured from passes of one and two rows of
        each kind of piece.
        """
        kinds = {
            (piece.cost, part.mask.shape): piece
            for piece, part in zip(self.pieces, self.slices, strict=True)
        }
        kept = max((self._kept(p, 2) - self._kept(p, 1)) / p.cost for p in kinds.values())
        return tokens_that_fit(kept, self.device)

    def _kept(self, piece: Piece, rows: int) -> int:
        """Bytes that a forward pass of this many rows keeps for the backward pass."""
        theta = torch.zeros(rows, self.d_source, dtype=self.dtype, device=self.device)
        with self.uncompiled():
            return bytes_kept(piece.fn, theta)

    def _norms(self) -> tuple[float, float]:
        """Median ‖h_source‖ without first tokens, and mean ‖h‖ of what is read, both unsteered."""

        def norms(hidden: Tensor) -> Tensor:
            found: Tensor = hidden.to(self.device, self.dtype).norm(dim=-1).flatten()
            return found

        source = torch.cat([norms(s.hidden[token_index(s.mask) >= 1]) for s in self.slices])
        if not len(source):  # prompts of a single token
            source = torch.cat([norms(s.hidden[s.mask]) for s in self.slices])
        target = torch.cat([norms(self._last(s, s.output)) for s in self.slices])
        return source.median().item(), target.mean().item()

    def _make_pieces(self) -> list[Piece]:
        pieces = []
        zero = torch.zeros(1, self.d_source, dtype=self.dtype, device=self.device)
        # width of one prompt's stacked response
        width = self.placement.target_tokens * self.lm.width
        for group, part in zip(self.groups, self.slices, strict=True):
            tail = self._tail(part)
            at_tail = tail is not None and self.placement.positions == "target"
            kept = tail.keep() if tail is not None and at_tail else None
            state = partial(self._state, part, tail, kept)
            with torch.no_grad():
                # by the path of steered passes, so that rounding is the same
                base = state(zero)
            columns: slice | Tensor = slice(0, self.d_target)
            if self.concatenate:
                spans = [torch.arange(i * width, (i + 1) * width) for i in group]
                columns = torch.cat(spans).to(self.device)
            tokens = part.mask.shape[1] if kept is None else self.placement.target_tokens
            pieces.append(Piece(partial(self._response, state, base), columns, len(group) * tokens))
        return pieces

    def _response(self, state: Callable[[Tensor], Tensor], base: Tensor, theta: Tensor) -> Tensor:
        """One group of prompts' share of Δ(θ): ``[k, d] → [k, width]``."""
        steered = state(theta)
        change = steered.view(len(theta), -1, *steered.shape[1:]) - base  # [k, n, target_tokens, d]
        if self.concatenate:
            return change.flatten(1)
        return change.mean(2).sum(1) / len(self.prompts)

    def _tail(self, part: Slice) -> Tail | None:
        """The tokens that are read, where blocks can run on these alone."""
        # hooks count tokens from the front
        return None if part.hooked else find_tail(part, self.placement.target_tokens)

    def _state(
        self, part: Slice, tail: Tail | None, kept: list[KeysValues] | None, theta: Tensor
    ) -> Tensor:
        """States that are read under θ, ``[k, d_source] → [k·n, target_tokens, d]``."""
        with self._editing(theta):
            hidden = self._entering(part, theta)
            if kept is not None and tail is not None:
                last = tail.replay(hidden[:, -self.placement.target_tokens :], kept)
            elif tail is not None:
                last = tail.read(hidden, self._choose_run(part, len(theta)))
            else:
                last = self._last(part, part.replay(hidden, self._choose_run(part, len(theta))))
        last = last.to(self.device, self.dtype)
        if not self.normalise_target:
            return last
        norms: Tensor = last.norm(dim=-1, keepdim=True)
        return last / norms * self.target_norm

    @abstractmethod
    def _entering(self, part: Slice, theta: Tensor) -> Tensor:
        """The stream entering the first block under θ: ``[k, d_source] → [k·n, T, d]``."""

    def _editing(self, theta: Tensor) -> AbstractContextManager[None]:
        """Edit of the model itself while it runs under θ; none by default."""
        return nullcontext()

    def _choose_run(self, part: Slice, rows: int) -> Run:
        """Choose how blocks are called: compiled if wanted, worth it, and gradients are needed.

        What runs uncompiled is counted. Compiled blocks run past hooks.
        """
        if self.compile is False or part.hooked or not torch.is_grad_enabled():
            return call_block
        if self.compile is None:
            if self.device.type != "cpu":
                return call_block
            # two operations a weight and token, forward and backward
            self._plain_flops += 4 * self._num_weights * rows * part.mask.numel()
            if self._plain_flops < self._worth_compiling:
                return call_block
        return self._compiled

    def _last(self, part: Slice, hidden: Tensor) -> Tensor:
        """Hidden states at the last ``target_tokens`` real positions of each row.

        Padding is on the right; ``[k·n, T, d] → [k·n, target_tokens, d]``.
        """
        n = len(part.mask)
        end = part.mask.sum(1)  # [n]
        back = torch.arange(-self.placement.target_tokens, 0, device=end.device)
        at = (end[:, None] + back).to(hidden.device)  # [n, target_tokens]
        rows = torch.arange(n, device=hidden.device)[:, None]
        return hidden.view(-1, n, *hidden.shape[1:])[:, rows, at].flatten(0, 1)
