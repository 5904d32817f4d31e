"""Tiny mixtures of experts whose matrices are stored the other way round, or have equal sides."""

from functools import partial

from research.tiny.build import GROUPED, WIDTH, Builder, make

_SQUARE = GROUPED | {"intermediate_size": WIDTH}
_LLAMA4 = {
    "head_dim": 8,
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "intermediate_size_mlp": 48,
    "attention_chunk_size": 8,
    "interleave_moe_layer_step": 2,
}

EXPERTS: dict[str, Builder] = {
    "llama4": partial(make, "Llama4TextConfig", GROUPED, **_LLAMA4),
    "llama4_square": partial(make, "Llama4TextConfig", _SQUARE, **_LLAMA4),
    "aria_square": partial(
        make,
        "AriaTextConfig",
        _SQUARE,
        moe_num_experts=4,
        moe_topk=2,
        moe_num_shared_experts=1,
    ),
    "jamba_square": partial(
        make,
        "JambaConfig",
        _SQUARE,
        num_experts=2,
        expert_layer_period=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        mamba_d_state=4,
        use_mamba_kernels=False,
    ),
}
