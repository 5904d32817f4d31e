"""Δ of a language model: what a perturbation of an early layer does to a late one, averaged over prompts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Literal

import psutil
import torch
from torch import Tensor

from .compiled import WORTH, call_compiled
from .errors import MelboError
from .model import LanguageModel
from .oracles import Map, Piece
from .prompts import Prompts, pad_rows, token_index
from .slice import Run, Slice, call_block
from .tail import KeysValues, Tail, find_tail
from .writers import added_by, mixer

Positions = Literal["all", "target"]
Read = Literal["stream", "attention"]

_SIDE_BY_SIDE = 320  # tokens of prompts that share a piece, at most: about where larger products stop being faster on a CPU


class CausalMap(Map):
    """θ ↦ mean over prompts of the mean over target positions of h_target(h_source + θ) − h_target.

    θ is added to the input of block ``source`` at every steered position; blocks ``source`` … ``target − 1`` run; the last
    ``target_tokens`` positions are read. The unsteered pass runs once, on construction. With ``read="attention"``, what attention adds to the
    stream in block ``target − 1`` stands in the place of h_target.

    Args:
        lm: The model.
        prompts: What it reads.
        source: Layer that is perturbed, an index into ``hidden_states`` (negative from the end).
        target: Layer that is read; ``depth`` is the output of the last block, before the final norm.
        target_tokens: How many of the last tokens are read.
        skip_first: Leave the first token, the attention sink, unsteered.
        normalise_target: Read h/‖h‖ × (mean ‖h‖ of the unsteered run) for every h that is read, which guards against features that win by blowing
            up norms and keeps the units of Δ.
        concatenate: Stack prompts and target positions instead of averaging them; ``d_target`` is then prompts × target_tokens × d
            (the original MELBO objective's view).
        prompt_batch: How many prompts run side by side, in order, padded to the longest; by default those of equal length do, and where there
            are many, those of similar length. The result does not depend on it.
        positions: ``"all"`` steers every token. ``"target"`` steers the last ``target_tokens`` only, those that are read: another map, whose
            passes run on these few tokens over the kept keys and values of the others (docs/performance.md: how much faster).
        read: ``"stream"`` reads h_target. ``"attention"`` reads what attention adds to it in block ``target − 1`` (the output of attention's last
            matrix, or of the norm behind it, times what the block multiplies it by; of a convolution or recurrence in a block that has one in the
            place of attention), in the units of the stream.
        tokens_per_pass: How many tokens run through the blocks at a time; by default what half of the free memory holds (measured), at
            most 1200 on a CPU.
        compile: Fuse the blocks' element-wise work by ``torch.compile`` where a backward pass follows (results agree to rounding; not for
            ``positions="target"``, nor in the block whose attention is read). By default on a CPU, once so much work has been done that it
            pays; falls back by itself.

    Raises:
        MelboError: ``source ≥ target``, a layer out of range, a prompt shorter than ``target_tokens`` (or with nothing to steer),
            hidden states that are not finite, or attention to be read that is not found (see `melbo.writers.mixer`).
    """

    def __init__(
        self,
        lm: LanguageModel,
        prompts: Prompts,
        source: int,
        target: int,
        *,
        target_tokens: int = 3,
        skip_first: bool = False,
        normalise_target: bool = False,
        concatenate: bool = False,
        positions: Positions = "all",
        read: Read = "stream",
        prompt_batch: int | None = None,
        tokens_per_pass: int | None = None,
        compile: bool | None = None,
    ) -> None:
        self.lm, self.prompts = lm, prompts
        self.source, self.target = lm.layer(source, "source"), lm.layer(target, "target")
        if self.source >= self.target:
            raise MelboError(f"source is {source} and target is {target}: expected source < target")
        if target_tokens < 1 or (prompt_batch is not None and prompt_batch < 1):
            raise MelboError(f"got target_tokens={target_tokens} and prompt_batch={prompt_batch}: expected at least 1 of each")
        if positions not in ("all", "target"):
            raise MelboError(f"positions is {positions!r}: expected 'all' or 'target'")
        if read not in ("stream", "attention"):
            raise MelboError(f"read is {read!r}: expected 'stream' or 'attention'")
        shortest = min(range(len(prompts)), key=lambda i: len(prompts.tokens[i]))
        need = max(target_tokens, 2 if skip_first else 1)
        if len(prompts.tokens[shortest]) < need:
            raise MelboError(
                f"prompt {shortest} has {len(prompts.tokens[shortest])} tokens, fewer than the {need} needed: "
                f"lengthen it, use a chat template or lower target_tokens ({target_tokens})"
            )
        self.target_tokens, self.skip_first, self.positions, self.read = target_tokens, skip_first, positions, read
        self.normalise_target, self.concatenate, self.prompt_batch = normalise_target, concatenate, prompt_batch

        self._last_run = added_by(mixer(lm, self.target - 1)) if read == "attention" else None
        self.groups = self._groups(tokens_per_pass)
        self.slices = [self._capture(group) for group in self.groups]
        first = self.slices[0].hidden
        self.device = first.device
        self.dtype = first.dtype if first.dtype == torch.float64 else torch.float32
        self.d_source = self._theta_width(lm.width)
        self.d_target = len(prompts) * target_tokens * lm.width if concatenate else lm.width
        self.source_norm, self.target_norm = self._norms()
        self.compile = compile
        self._plain_flops: float = 0.0  # spent on backward passes, as far as weights go
        self._pieces = self._make_pieces()
        self.tokens_per_pass = tokens_per_pass or self._usual_tokens()

    @property
    def pieces(self) -> Sequence[Piece]:
        """One for every group of prompts."""
        return self._pieces

    @property
    def response_shape(self) -> tuple[int, int, int]:
        """Prompts, tokens and channels that the response keeps apart; product ``d_target``."""
        return (len(self.prompts), self.target_tokens, self.lm.width) if self.concatenate else (1, 1, self.lm.width)

    def describe(self) -> dict:
        """Settings and prompts; `from_description` makes the map again."""
        return {
            "kind": "CausalMap",
            "d_source": self.d_source,
            "d_target": self.d_target,
            "source": self.source,
            "target": self.target,
            "target_tokens": self.target_tokens,
            "skip_first": self.skip_first,
            "positions": self.positions,
            "read": self.read,
            "normalise_target": self.normalise_target,
            "concatenate": self.concatenate,
            "source_norm": self.source_norm,
            "prompts": self.prompts.describe(),
            "model": self.lm.describe(),
        }

    @classmethod
    def from_description(cls, lm: LanguageModel, saved: dict) -> "CausalMap":
        """The map that wrote ``saved``, on the same model."""
        names = ("target_tokens", "skip_first", "normalise_target", "concatenate", "positions", "read")
        settings = {k: saved[k] for k in names if k in saved}
        return cls(lm, Prompts.from_description(saved["prompts"]), saved["source"], saved["target"], **settings)

    def locate_nonfinite(self, theta: Tensor) -> str:
        """The first layer that a perturbation ``[1, d_source]`` drives to infinity, in words."""
        for part in self.slices:
            theta = theta.to(self.device, self.dtype)
            with torch.no_grad(), self._editing(theta):
                for layer, hidden in part.trace(self._steered(part, theta)):
                    if not torch.isfinite(hidden[part.mask.to(hidden.device)]).all():
                        what = "what attention adds to " if self.read == "attention" and layer == self.target else ""
                        return f"{what}hidden_states[{layer}] of the steered model"
        return "the response"

    @contextmanager
    def uncompiled(self) -> Iterator[None]:
        """Blocks run as they are inside."""
        before, self.compile = self.compile, False
        try:
            yield
        finally:
            self.compile = before

    @contextmanager
    def _forward_mode(self) -> Iterator[None]:
        """Also, mixtures of experts in the formulation that has forward mode; transformers reads the setting at every call."""
        config, name = self.lm.config, "_experts_implementation"
        before = getattr(config, name, None)
        if before is not None:
            setattr(config, name, "batched_mm")
        try:
            with self.uncompiled(), super()._forward_mode():
                yield
        finally:
            if before is not None:
                setattr(config, name, before)

    def _groups(self, tokens_per_pass: int | None) -> list[list[int]]:
        """Which prompts run side by side.

        A pass takes every prompt with as many directions as fit it: with many prompts these are few, and products of a single prompt would be small.
        Padding costs less than that, but it also keeps the last block, or with ``positions="target"`` all of them, from running at the tail only.
        """
        if self.prompt_batch is not None:
            return [list(range(len(self.prompts)))[i : i + self.prompt_batch] for i in range(0, len(self.prompts), self.prompt_batch)]
        many = sum(map(len, self.prompts.tokens)) > _SIDE_BY_SIDE
        return self.prompts.by_length(min(_SIDE_BY_SIDE, tokens_per_pass or _SIDE_BY_SIDE), 1 / 8 if many and self.positions == "all" else 0)

    def _capture(self, group: list[int]) -> Slice:
        """The slice that these prompts pass through; what it gives is what is read."""
        # padded on the right, because a causal model never lets a real token see what stands after it
        ids, mask = pad_rows([self.prompts.tokens[i] for i in group], self.lm.pad, side="right")
        part = self.lm.capture(ids, mask, self.source, self.target)
        if self._last_run is None:
            return part
        *before, last = part.calls
        part = replace(part, calls=(*before, replace(last, run=self._last_run)))
        with torch.no_grad():
            return replace(part, output=part.replay(part.hidden))

    def _usual_tokens(self) -> int:
        """What half of the free memory holds of what a backward pass keeps, which one and two rows of each kind of piece tell."""
        kinds = {(piece.cost, part.mask.shape): piece for piece, part in zip(self.pieces, self.slices, strict=True)}
        kept = max((self._kept(piece, 2) - self._kept(piece, 1)) / piece.cost for piece in kinds.values())
        if self.device.type == "cuda":
            unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
            free, most = torch.cuda.mem_get_info(self.device)[0] + unused, 65536
        else:
            free, most = psutil.virtual_memory().available, 1200
        return max(1, min(most, int(free / 2 / max(1, kept))))

    def _kept(self, piece: Piece, rows: int) -> int:
        """Bytes that a forward pass of this many rows keeps for the backward pass."""
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()  # a graph that holds its own outputs is never freed

        theta = torch.zeros(rows, self.d_source, dtype=self.dtype, device=self.device, requires_grad=True)
        with self.uncompiled(), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            out = piece.fn(theta)
        del out  # held until here, so that no address is given out twice
        return sum(kept.values())

    def _norms(self) -> tuple[float, float]:
        """Median ‖h_source‖ without the first token, and mean ‖h‖ of what is read in the unsteered run."""
        source = torch.cat([s.hidden[_at_least(s.mask, 1)].to(self.device, self.dtype).norm(dim=-1) for s in self.slices])
        if not len(source):  # prompts of a single token
            source = torch.cat([s.hidden[s.mask].to(self.device, self.dtype).norm(dim=-1) for s in self.slices])
        target = torch.cat([self._last(s, s.output).to(self.device, self.dtype).norm(dim=-1).flatten() for s in self.slices])
        return source.median().item(), target.mean().item()

    def _make_pieces(self) -> list[Piece]:
        pieces = []
        zero = torch.zeros(1, self.d_source, dtype=self.dtype, device=self.device)
        width = self.target_tokens * self.lm.width  # of a prompt's part of the stacked response
        for group, part in zip(self.groups, self.slices, strict=True):
            tail = find_tail(part, self.target_tokens)
            kept = tail.keep() if tail is not None and self.positions == "target" else None
            state = partial(self._state, part, tail, kept)
            with torch.no_grad():
                base = state(zero)  # by the path that steered passes take, so that rounding is the same
            columns: slice | Tensor = slice(0, self.d_target)
            if self.concatenate:
                columns = torch.cat([torch.arange(i * width, (i + 1) * width, device=self.device) for i in group])
            cost = len(group) * (part.mask.shape[1] if kept is None else self.target_tokens)
            pieces.append(Piece(partial(self._response, state, base), columns, cost))
        return pieces

    def _response(self, state: Callable[[Tensor], Tensor], base: Tensor, theta: Tensor) -> Tensor:
        """One group of prompts' share of Δ(θ): ``[k, d] → [k, width]``."""
        change = state(theta).unflatten(0, (len(theta), -1)) - base  # [k, n, target_tokens, d]
        return change.flatten(1) if self.concatenate else change.mean(2).sum(1) / len(self.prompts)

    def _state(self, part: Slice, tail: Tail | None, kept: list[KeysValues] | None, theta: Tensor) -> Tensor:
        """What is read of the steered pass, ``[k, d_source] → [k·n, target_tokens, d]``."""
        with self._editing(theta):
            return self._read(part, tail, kept, theta)

    def _theta_width(self, width: int) -> int:
        """Of a perturbation, where that of the stream is ``width``."""
        return width

    def _editing(self, theta: Tensor) -> AbstractContextManager[None]:
        """What is done to the model while it runs, apart from its input; nothing here."""
        return nullcontext()

    def _read(self, part: Slice, tail: Tail | None, kept: list[KeysValues] | None, theta: Tensor) -> Tensor:
        hidden = self._steered(part, theta)
        if kept is not None and tail is not None:
            last = tail.replay(hidden[:, -self.target_tokens :], kept)
        elif tail is not None:
            last = tail.read(hidden, self._run(part, len(theta)))
        else:
            last = self._last(part, part.replay(hidden, self._run(part, len(theta))))
        last = last.to(self.device, self.dtype)
        return last / last.norm(dim=-1, keepdim=True) * self.target_norm if self.normalise_target else last

    def _run(self, part: Slice, rows: int) -> Run:
        """How blocks are called: compiled where that is wanted and pays, which is where a backward pass follows."""
        if self.compile is False or not torch.is_grad_enabled():
            return call_block
        if self.compile is None:
            if self.device.type != "cpu":
                return call_block
            weights = sum(p.numel() for call in part.calls for p in call.block.parameters())
            self._plain_flops += 4 * weights * rows * part.mask.numel()  # two a weight and token, forward and backward
            if self._plain_flops < WORTH:
                return call_block
        return call_compiled

    def _steered(self, part: Slice, theta: Tensor) -> Tensor:
        """h_source + θ at the steered positions: ``[k, d] → [k·n, T, d]``."""
        index = token_index(part.mask)
        first = 1 if self.skip_first else 0
        steered = index >= first
        if self.positions == "target":
            steered &= index > index.max(1, keepdim=True).values - self.target_tokens
        # θ is added at full precision and rounded once
        hidden = part.hidden.to(self.dtype) + theta[:, None, None, :] * steered[None, :, :, None].to(self.dtype)
        return hidden.to(part.hidden.dtype).flatten(0, 1)

    def _last(self, part: Slice, hidden: Tensor) -> Tensor:
        """Hidden states at the last ``target_tokens`` real positions of each row (padding is on the right), ``[k·n, target_tokens, d]``."""
        n = len(part.mask)
        end = part.mask.sum(1)  # [n]
        at = end[:, None] + torch.arange(-self.target_tokens, 0, device=end.device)  # [n, target_tokens]
        rows = torch.arange(n, device=end.device)[:, None]
        at, rows = at.to(hidden.device), rows.to(hidden.device)
        return hidden.unflatten(0, (-1, n))[:, rows, at].flatten(0, 1)


def _at_least(mask: Tensor, first: int) -> Tensor:
    """Real tokens from the ``first``-th of their row on, ``[n, T]``."""
    return token_index(mask) >= first
