"""Tiny models that keep a state beside keys and values, or instead of them."""

from functools import partial

import transformers as tf
from cases import VOCAB, WIDTH, build

_IDS = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_PLAIN = _IDS | {"hidden_size": WIDTH, "num_hidden_layers": 3}
_SHAPE = _PLAIN | {
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_SSM = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
_LINEAR = {
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_ZAMBA = {
    "num_hidden_layers": 4,
    "mamba_d_state": 8,
    "n_mamba_heads": 2,
    "use_mamba_kernels": False,
}


def _make(config, shape, **more):
    return build(getattr(tf, config)(**(shape | more)))


RECURRENT = {
    "mamba": partial(_make, "MambaConfig", _PLAIN, state_size=8),
    "mamba2": partial(
        _make,
        "Mamba2Config",
        _PLAIN,
        state_size=8,
        num_heads=4,
        head_dim=16,
        n_groups=1,
        chunk_size=8,
    ),
    "falcon_mamba": partial(_make, "FalconMambaConfig", _PLAIN, state_size=8),
    "rwkv": partial(
        _make,
        "RwkvConfig",
        _PLAIN,
        attention_hidden_size=WIDTH,
        intermediate_size=48,
        context_length=64,
    ),
    "xlstm": partial(
        _make, "xLSTMConfig", _PLAIN, embedding_dim=WIDTH, num_blocks=3, num_heads=4, chunk_size=8
    ),
    "jamba": partial(
        _make,
        "JambaConfig",
        _SHAPE,
        num_hidden_layers=4,
        mamba_d_state=8,
        mamba_dt_rank=4,
        attn_layer_period=4,
        attn_layer_offset=1,
        num_experts=2,
        expert_layer_period=2,
        expert_layer_offset=1,
        use_mamba_kernels=False,
    ),
    "bamba": partial(_make, "BambaConfig", _SHAPE | _SSM, attn_layer_indices=[1]),
    "zamba": partial(
        _make,
        "ZambaConfig",
        _SHAPE | _ZAMBA,
        mamba_dt_rank=4,
        attention_hidden_size=64,
        layers_block_type=["linear_attention", "hybrid"] * 2,
    ),
    "zamba2": partial(
        _make,
        "Zamba2Config",
        _SHAPE | _ZAMBA,
        mamba_ngroups=1,
        chunk_size=8,
        layers_block_type=["mamba", "hybrid"] * 2,
        adapter_rank=4,
    ),
    "falcon_h1": partial(_make, "FalconH1Config", _SHAPE | _SSM, mamba_d_ssm=64),
    "granitemoehybrid": partial(
        _make,
        "GraniteMoeHybridConfig",
        _SHAPE | _SSM,
        num_local_experts=2,
        num_experts_per_tok=1,
        shared_intermediate_size=16,
        layer_types=["mamba", "attention", "mamba"],
    ),
    "nemotron_h": partial(
        _make,
        "NemotronHConfig",
        _SHAPE,
        num_hidden_layers=4,
        hybrid_override_pattern="M*M-",
        mamba_num_heads=4,
        mamba_head_dim=16,
        ssm_state_size=8,
        n_groups=1,
        chunk_size=8,
    ),
    "qwen3_next": partial(
        _make,
        "Qwen3NextConfig",
        _SHAPE | _LINEAR,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
    "qwen3_5": partial(_make, "Qwen3_5TextConfig", _SHAPE | _LINEAR, head_dim=8),
    "olmo_hybrid": partial(_make, "OlmoHybridConfig", _SHAPE | _LINEAR),
    "minimax": partial(
        _make,
        "MiniMaxConfig",
        _SHAPE,
        head_dim=8,
        num_hidden_layers=4,
        num_local_experts=2,
        num_experts_per_tok=1,
        block_size=8,
        layer_types=["linear_attention", "full_attention"] * 2,
    ),
}
