"""Residual streams of tiny models, and the comparison of them."""

from functools import cache

import torch
from cases import FLOAT32_INSIDE, tiny_model


@cache
def shared(name, dtype=torch.float64):
    """A model for tests that leave it as it is."""
    return tiny_model(name, dtype)


def model_and_tolerance(name, side):
    """A model, and how far apart runs of batches of different shapes may be on it.

    Runs of one shape agree to 1e-10 in float64.
    """
    if name not in FLOAT32_INSIDE:
        return shared(name), 1e-10
    return (shared(name, torch.float32), 1e-5) if side == "left" else (shared(name), 1e-6)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def first(out):
    return out[0] if isinstance(out, tuple) else out


@torch.no_grad()
def streams(lm, ids, mask=None):
    """``hidden_states`` of the model's own forward, the last entry taken before the final norm."""
    last = []
    handle = lm.blocks[-1].register_forward_hook(lambda block, args, out: last.append(first(out)))
    try:
        out = lm.model(
            input_ids=ids,
            attention_mask=None if mask is None else mask.long(),
            use_cache=False,
            output_hidden_states=True,
        )
    finally:
        handle.remove()
    return [*out.hidden_states[:-1], *last]


def assert_close(got, want, tolerance):
    assert got.shape == want.shape
    off = (got - want).abs().max().item() / max(1.0, want.abs().max().item())
    assert off <= tolerance


def hooks(lm):
    """Hooks on any module that are not transformers' own.

    transformers installs some when it is asked for hidden states.
    """
    return [
        hook
        for module in lm.model.modules()
        for hook in [
            *module._forward_hooks.values(),
            *module._forward_pre_hooks.values(),
            *module._backward_hooks.values(),
        ]
        if not hook.__module__.startswith("transformers.")
    ]
