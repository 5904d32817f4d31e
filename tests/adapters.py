"""Maps of adapters on tiny models, and sets of adapters that no fit has found."""

import torch
from cases import prompts, tiny_model

from melbo import AdapterMap, AdapterSet

NAMES = ("llama", "qwen3", "gemma3", "gpt2", "gptj", "olmo2")
BAND, TARGET = (0, 2), 3


def a_map(name="llama", dtype=torch.float64, matrix="attention", **more):
    lm = tiny_model(name, dtype)
    return AdapterMap(lm, prompts([6, 4, 6]), BAND, TARGET, matrix=matrix, **more)


def some(cmap, k, seed=0):
    """Balanced unit factors."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(k, cmap.d_source, generator=generator, dtype=torch.float64)
    return cmap.unit(rows.to(cmap.dtype))


def a_set(cmap, k, scale=3.0):
    V = some(cmap, k)
    D = cmap.value(scale * V)
    U = torch.nn.functional.normalize(D, dim=-1)
    return AdapterSet(
        V, U, D.norm(dim=-1), scale, cmap.source, cmap.target, {"map": cmap.describe()}
    )


@torch.no_grad()
def logits_with_cache(lm, ids, following):
    """Logits of prompts, then of tokens that are read on top of their key-value cache."""
    first = lm.model(ids, use_cache=True)
    after = lm.model(following, past_key_values=first.past_key_values)
    return torch.cat([first.logits, after.logits], 1)
