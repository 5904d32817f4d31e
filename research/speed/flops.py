"""Operations that a pass needs, counted from shapes, and the matrix products of a pass alone."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from melbo.maps.model_map import ModelMap
from melbo.models.language_model import LanguageModel

# parts of the names of matrices that make keys or values
_KEYS = ("k_proj", "v_proj", "qkv", "query_key_value", "c_attn", "Wqkv", "in_proj")


def weights(block: nn.Module, config: Any) -> dict[str, float]:
    """Multiply–adds a token of every matrix in a block, by name.

    Args:
        block: The block. Of a mixture's experts those count that a token visits.
        config: Configuration of the model.
    """
    visited = getattr(config, "num_experts_per_tok", None) or 1
    matrices = {name: p for name, p in block.named_parameters() if p.ndim > 1}
    return {
        name: p.numel() * (visited / len(p) if p.ndim == 3 else 1) for name, p in matrices.items()
    }


def needed_flops(cmap: ModelMap, backward: bool) -> float:
    """Operations that one direction needs on all prompts, forward or forward and backward.

    A matrix of w entries takes 2w operations a token, and 2w more for the gradient of its input
    (weights have none). Attention takes 4·heads·(width of a head) for each pair of a token and one
    it sees, and twice that backward. The last block needs keys and values (matrices called k_proj,
    v_proj, or one that holds both) at every token and the rest at the tokens that are read; with
    ``positions="target"`` every block needs those tokens alone. Norms, activations and other
    element-wise work count as nothing.

    Args:
        cmap: The map.
        backward: Whether the backward pass is counted too.
    """
    config = cmap.lm.config
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or cmap.lm.width // heads)
    read, last = cmap.placement.target_tokens, cmap.target - 1
    everywhere = cmap.placement.positions == "all"
    total = 0.0
    for tokens in map(len, cmap.prompts.tokens):
        few_pairs = read * tokens - read * (read - 1) / 2
        for index in range(cmap.source, cmap.target):
            whole = everywhere and index != last
            pairs = tokens * (tokens + 1) / 2 if whole else few_pairs
            total += (3 if backward else 1) * 4 * width * pairs
            for name, size in weights(cmap.lm.blocks[index], config).items():
                at = tokens if whole or (everywhere and _holds_keys(name)) else read
                total += (4 if backward else 2) * size * at
    return total


def products(cmap: ModelMap, k: int, backward: bool) -> tuple[Callable[[], None], float]:
    """The matrix products of one pass and nothing else, and their operations.

    Args:
        cmap: The map.
        k: Number of directions; a pass is the chunk that the map cuts them into.
        backward: Whether gradients of inputs are multiplied too.
    """
    piece, chunk = next(cmap.chunks(k))
    rows = chunk.stop - chunk.start
    tokens, read = rows * piece.cost, rows * cmap.placement.target_tokens
    work: list[tuple[Tensor, Tensor, Tensor]] = []
    flops = 0.0
    weight = next(cmap.lm.blocks[cmap.source].parameters())
    random = cache(lambda *shape: torch.randn(*shape, dtype=weight.dtype, device=weight.device))
    for index in range(cmap.source, cmap.target):
        for name, p in cmap.lm.blocks[index].named_parameters():
            if p.ndim == 2:
                at = tokens if index != cmap.target - 1 or _holds_keys(name) else read
                work.append((p, random(at, p.shape[1]), random(at, p.shape[0])))
                flops += (4 if backward else 2) * p.numel() * at

    def run() -> None:
        with torch.no_grad():
            for p, x, g in work:
                nn.functional.linear(x, p)
                if backward:
                    g @ p

    return run, flops


def products_of_model(lm: LanguageModel, rows: int) -> tuple[Callable[[], None], float]:
    """The matrix products of a pass of the whole model and nothing else, and their operations.

    Args:
        lm: The model.
        rows: Number of tokens that pass, of all rows together.
    """
    matrices = [p for block in lm.blocks for p in block.parameters() if p.ndim == 2]
    matrices.append(lm.model.get_output_embeddings().weight)
    random = cache(lambda width: torch.randn(rows, width, dtype=lm.dtype, device=lm.device))

    def run() -> None:
        with torch.no_grad():
            for p in matrices:
                nn.functional.linear(random(p.shape[1]), p)

    return run, sum(2.0 * p.numel() * rows for p in matrices)


def _holds_keys(name: str) -> bool:
    """Tell whether a matrix of this name makes keys or values."""
    return any(part in name for part in _KEYS)
