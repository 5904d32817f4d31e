"""Δ of a language model: what a perturbation of an early layer does to a late one, averaged over prompts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from .errors import MelboError
from .model import LanguageModel
from .oracles import Map, Piece
from .prompts import Prompts, token_index
from .slice import Slice


class CausalMap(Map):
    """θ ↦ mean over prompts of the mean over target positions of h_target(h_source + θ) − h_target.

    θ is added to the input of block ``source`` at every steered position; blocks ``source`` … ``target − 1`` run; the last
    ``target_tokens`` positions are read. The unsteered pass runs once, on construction.

    Args:
        lm: The model.
        prompts: What it reads.
        source: Layer that is perturbed, an index into ``hidden_states`` (negative from the end).
        target: Layer that is read; ``depth`` is the output of the last block, before the final norm.
        target_tokens: How many of the last tokens are read.
        skip_first: Leave the first token, the attention sink, unsteered.
        normalise_target: Read h/‖h‖ × (mean ‖h_target‖ of the unsteered run), which guards against features that win by blowing up norms and
            keeps the units of Δ.
        concatenate: Stack prompts and target positions instead of averaging them; ``d_target`` is then prompts × target_tokens × d
            (the original MELBO objective's view).
        prompt_batch: How many prompts run side by side, padded to the longest. The result does not depend on it.
        tokens_per_pass: How many tokens run through the blocks at a time; by default 2048 on a CPU, on a GPU what fits
            half of its free memory.

    Raises:
        MelboError: ``source ≥ target``, a layer out of range, a prompt shorter than ``target_tokens`` (or with nothing to steer), or
            hidden states that are not finite.
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
        prompt_batch: int = 1,
        tokens_per_pass: int | None = None,
    ) -> None:
        self.lm, self.prompts = lm, prompts
        self.source, self.target = lm.layer(source, "source"), lm.layer(target, "target")
        if self.source >= self.target:
            raise MelboError(f"source is {source} and target is {target}: expected source < target")
        if target_tokens < 1 or prompt_batch < 1:
            raise MelboError(f"got target_tokens={target_tokens} and prompt_batch={prompt_batch}: expected at least 1 of each")
        shortest = min(range(len(prompts)), key=lambda i: len(prompts.tokens[i]))
        need = max(target_tokens, 2 if skip_first else 1)
        if len(prompts.tokens[shortest]) < need:
            raise MelboError(
                f"prompt {shortest} has {len(prompts.tokens[shortest])} tokens, fewer than the {need} needed: "
                f"lengthen it, use a chat template or lower target_tokens ({target_tokens})"
            )
        self.target_tokens, self.skip_first = target_tokens, skip_first
        self.normalise_target, self.concatenate, self.prompt_batch = normalise_target, concatenate, prompt_batch

        self.slices = [lm.capture(ids, mask, self.source, self.target) for ids, mask in prompts.batches(prompt_batch, lm.pad)]
        first = self.slices[0].hidden
        self.device = first.device
        self.dtype = first.dtype if first.dtype == torch.float64 else torch.float32
        self.d_source = first.shape[-1]
        self.d_target = len(prompts) * target_tokens * self.d_source if concatenate else self.d_source
        self.tokens_per_pass = tokens_per_pass or self._usual_tokens(first.dtype)
        self.source_norm, self.target_norm = self._norms()
        self._pieces = self._make_pieces()

    @property
    def pieces(self) -> Sequence[Piece]:
        """One for every batch of prompts."""
        return self._pieces

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
            "normalise_target": self.normalise_target,
            "concatenate": self.concatenate,
            "source_norm": self.source_norm,
            "prompts": self.prompts.describe(),
            "model": self.lm.describe(),
        }

    @classmethod
    def from_description(cls, lm: LanguageModel, saved: dict) -> "CausalMap":
        """The map that wrote ``saved``, on the same model."""
        settings = {k: saved[k] for k in ("target_tokens", "skip_first", "normalise_target", "concatenate")}
        return cls(lm, Prompts.from_description(saved["prompts"]), saved["source"], saved["target"], **settings)

    def locate_nonfinite(self, theta: Tensor) -> str:
        """The first layer that a perturbation ``[1, d_source]`` drives to infinity, in words."""
        for part in self.slices:
            with torch.no_grad():
                for layer, hidden in part.trace(self._steered(part, theta.to(self.device, self.dtype))):
                    if not torch.isfinite(hidden[part.mask.to(hidden.device)]).all():
                        return f"hidden_states[{layer}] of the steered model"
        return "the response"

    @contextmanager
    def _forward_mode(self) -> Iterator[None]:
        """Also, mixtures of experts in the formulation that has forward mode; transformers reads the setting at every call."""
        config, name = self.lm.config, "_experts_implementation"
        before = getattr(config, name, None)
        if before is not None:
            setattr(config, name, "batched_mm")
        try:
            with super()._forward_mode():
                yield
        finally:
            if before is not None:
                setattr(config, name, before)

    def _usual_tokens(self, dtype: torch.dtype) -> int:
        """What a backward pass keeps is about 16 values a token, block and unit of width in a Llama (measured); 32 leaves room for wide MLPs."""
        if self.device.type != "cuda":
            return 2048
        kept = 32 * (self.target - self.source) * self.d_source * dtype.itemsize
        return min(65536, max(1024, torch.cuda.mem_get_info(self.device)[0] // 2 // kept))

    def _norms(self) -> tuple[float, float]:
        """Median ‖h_source‖ without the first token, and mean ‖h_target‖ over the target positions of the unsteered run."""
        source = torch.cat([s.hidden[_at_least(s.mask, 1)].to(self.device, self.dtype).norm(dim=-1) for s in self.slices])
        if not len(source):  # prompts of a single token
            source = torch.cat([s.hidden[s.mask].to(self.device, self.dtype).norm(dim=-1) for s in self.slices])
        target = torch.cat([self._last(s, s.output).norm(dim=-1).flatten() for s in self.slices])
        return source.median().item(), target.mean().item()

    def _make_pieces(self) -> list[Piece]:
        pieces, start = [], 0
        for part in self.slices:
            n, length = part.mask.shape
            width = n * self.target_tokens * self.d_source
            columns = slice(start, start + width) if self.concatenate else slice(0, self.d_target)
            pieces.append(Piece(partial(self._response, part, self._read(part, part.output)), columns, n * length))
            start += width
        return pieces

    def _response(self, part: Slice, base: Tensor, theta: Tensor) -> Tensor:
        """One batch of prompts' share of Δ(θ): ``[k, d] → [k, width]``."""
        n = len(part.mask)
        hidden = part.replay(self._steered(part, theta))
        change = self._read(part, hidden).unflatten(0, (len(theta), n)) - base  # [k, n, target_tokens, d]
        return change.flatten(1) if self.concatenate else change.mean(2).sum(1) / len(self.prompts)

    def _steered(self, part: Slice, theta: Tensor) -> Tensor:
        """h_source + θ at the steered positions: ``[k, d] → [k·n, T, d]``."""
        steered = _at_least(part.mask, 1 if self.skip_first else 0)
        # θ is added at full precision and rounded once
        hidden = part.hidden.to(self.dtype) + theta[:, None, None, :] * steered[None, :, :, None].to(self.dtype)
        return hidden.to(part.hidden.dtype).flatten(0, 1)

    def _read(self, part: Slice, hidden: Tensor) -> Tensor:
        """The read-out at the target positions, ``[k·n, T, d] → [k·n, target_tokens, d]``."""
        last = self._last(part, hidden)
        return last / last.norm(dim=-1, keepdim=True) * self.target_norm if self.normalise_target else last

    def _last(self, part: Slice, hidden: Tensor) -> Tensor:
        """Hidden states at the last ``target_tokens`` real positions of each row (padding is on the right)."""
        n = len(part.mask)
        end = part.mask.sum(1)  # [n]
        at = end[:, None] + torch.arange(-self.target_tokens, 0, device=end.device)  # [n, target_tokens]
        rows = torch.arange(n, device=end.device)[:, None]
        at, rows = at.to(hidden.device), rows.to(hidden.device)
        return hidden.unflatten(0, (-1, n))[:, rows, at].flatten(0, 1).to(self.device, self.dtype)


def _at_least(mask: Tensor, first: int) -> Tensor:
    """Real tokens from the ``first``-th of their row on, ``[n, T]``."""
    return token_index(mask) >= first
