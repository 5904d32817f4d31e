"""The residual stream of a batch at several layers, read in one pass that stops at the last one."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from melbo.errors import MelboError
from melbo.models.language_model import LanguageModel


def read_stream(
    lm: LanguageModel, ids: Tensor, mask: Tensor, layers: Sequence[int]
) -> tuple[Tensor, ...]:
    """Residual stream at each layer ``[n, T, d]``; blocks behind the last of them do not run.

    Args:
        lm: The model.
        ids: Token ids ``[n, T]``.
        mask: True on real tokens ``[n, T]``.
        layers: Indices into ``hidden_states``, negative from the end; one or more.

    Raises:
        MelboError: There is no such layer, or the stream of a real token is not finite.
    """
    at = [lm.layer(layer) for layer in layers]
    last = max(at)
    found: dict[int, Tensor] = {}

    def note(layer: int) -> Any:
        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            # a block may change its input in place
            found[layer] = hidden.detach().clone()

        return hook

    with ExitStack() as hooks:
        for layer in set(at) - {last}:
            hooks.enter_context(
                lm.blocks[layer].register_forward_pre_hook(note(layer), with_kwargs=True)
            )
        run = lm.capture(ids, mask, max(last, 1) - 1, max(last, 1))
    found[last] = run.output if last else run.hidden
    for layer, hidden in found.items():
        if not torch.isfinite(hidden[mask.to(hidden.device)]).all():
            raise MelboError(
                f"hidden_states[{layer}] of {lm.name} is not finite: "
                "load the model in float32 or bfloat16, or check its weights"
            )
    return tuple(found[layer] for layer in at)
