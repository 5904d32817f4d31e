"""Δ of a vector added to the residual stream, read at a late layer (docs/method.md §1)."""

from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor

from melbo.maps.model_map import ModelMap, Read
from melbo.maps.smooth import SmoothMap
from melbo.models.language_model import LanguageModel
from melbo.models.placement import Placement, Positions, layers_at, steered_tokens
from melbo.models.replay import Slice
from melbo.models.text.prompts import Prompts, token_index

_SETTINGS = (
    "target_tokens",
    "skip_first",
    "normalise_target",
    "concatenate",
    "positions",
    "read",
)


class CausalMap(ModelMap, SmoothMap):
    """θ ↦ mean over prompts and target positions of h_target(h_source + θ) − h_target.

    θ is added to the input of block ``source`` at every steered position; blocks ``source`` …
    ``target − 1`` run; the last ``target_tokens`` positions are read. With ``read="attention"``,
    h_target is replaced by what attention adds to the stream in block ``target − 1``.

    Args:
        lm: The model.
        prompts: Prompts that it reads.
        source: Layer that is perturbed, an index into ``hidden_states`` (negative from the end); at
            8/30 of the depth if left out.
        target: Layer that is read; ``depth`` is the output of the last block, before the final
            norm. At 20/30 of the depth if left out.
        target_tokens: Number of last tokens that are read.
        skip_first: Whether the first token, the attention sink, is left unsteered.
        normalise_target: Whether to read h/‖h‖ × (mean ‖h‖ of the unsteered run) for every h. This
            guards against features that win by blowing up norms, and keeps the units of Δ.
        concatenate: Whether prompts and target positions are stacked instead of averaged;
            ``d_target`` is then prompts × target_tokens × d (the original MELBO objective's view).
        positions: ``"all"`` steers every token. ``"target"`` steers the last ``target_tokens``
            only, those that are read: another map, whose passes run on these few tokens over the
            kept keys and values of the others (docs/performance.md tells how much faster).
        read: ``"stream"`` reads h_target. ``"attention"`` reads what attention adds to it in block
            ``target − 1``, in the units of the stream: the output of attention's last matrix, or of
            the norm behind it, times any factor that the block applies. In a block with a
            convolution or recurrence instead of attention, it reads the output of that.
        prompt_batch: Number of prompts that run side by side, in order, padded to the longest. By
            default prompts of equal length share a batch, and where there are many, prompts of
            similar length. The result does not depend on it.
        tokens_per_pass: Number of tokens that run through the blocks at a time. By default as many
            as fit in half of the free memory (measured), at most 1200 on a CPU.
        compile: Whether the blocks' element-wise work is fused by ``torch.compile`` where a
            backward pass follows (results agree to rounding; not for ``positions="target"``, nor in
            the block whose attention is read). By default this happens on a CPU only, after so much
            work that it pays. Blocks that do not compile run uncompiled.

    Raises:
        MelboError: ``source ≥ target``, a layer is out of range, a prompt is shorter than
            ``target_tokens`` (or has nothing to steer), hidden states are not finite, or the
            attention to be read is not found (see `melbo.models.weights.output_matrices`).
    """

    def __init__(
        self,
        lm: LanguageModel,
        prompts: Prompts,
        source: int | None = None,
        target: int | None = None,
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
        usual = layers_at(lm.depth)
        placement = Placement(
            lm.layer(usual[0] if source is None else source, "source"),
            lm.layer(usual[1] if target is None else target, "target"),
            target_tokens,
            positions,
            skip_first,
        )
        super().__init__(
            lm,
            prompts,
            placement,
            lm.width,
            normalise_target=normalise_target,
            concatenate=concatenate,
            read=read,
            prompt_batch=prompt_batch,
            tokens_per_pass=tokens_per_pass,
            compile=compile,
        )

    @classmethod
    def from_description(cls, lm: LanguageModel, saved: Mapping[str, Any]) -> Self:
        """See `ModelMap.from_description`."""
        settings = {name: saved[name] for name in _SETTINGS if name in saved}
        prompts = Prompts.from_description(saved["prompts"])
        return cls(lm, prompts, saved["source"], saved["target"], **settings)

    def _entering(self, part: Slice, theta: Tensor) -> Tensor:
        """h_source + θ at the steered positions."""
        index = token_index(part.mask)
        steered = steered_tokens(index, self.placement.skip_first, self.placement.last)
        # θ is added at full precision and rounded once
        added = theta[:, None, None, :] * steered[None, :, :, None].to(self.dtype)
        return (part.hidden.to(self.dtype) + added).to(part.hidden.dtype).flatten(0, 1)
