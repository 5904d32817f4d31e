"""Tiny models that keep a state beside keys and values, or instead of them."""

from functools import partial

from research.tiny.build import GROUPED, TOKENS, WIDTH, Builder, make

_PLAIN = TOKENS | {"hidden_size": WIDTH, "num_hidden_layers": 3}
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


RECURRENT: dict[str, Builder] = {
    "mamba": partial(make, "MambaConfig", _PLAIN, state_size=8),
    "mamba2": partial(
        make,
        "Mamba2Config",
        _PLAIN,
        state_size=8,
        num_heads=4,
        head_dim=16,
        n_groups=1,
        chunk_size=8,
    ),
    "falcon_mamba": partial(make, "FalconMambaConfig", _PLAIN, state_size=8),
    "rwkv": partial(
        make,
        "RwkvConfig",
        _PLAIN,
        attention_hidden_size=WIDTH,
        intermediate_size=48,
        context_length=64,
    ),
    "xlstm": partial(
        make, "xLSTMConfig", _PLAIN, embedding_dim=WIDTH, num_blocks=3, num_heads=4, chunk_size=8
    ),
    "jamba": partial(
        make,
        "JambaConfig",
        GROUPED,
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
    "bamba": partial(make, "BambaConfig", GROUPED | _SSM, attn_layer_indices=[1]),
    "zamba": partial(
        make,
        "ZambaConfig",
        GROUPED | _ZAMBA,
        mamba_dt_rank=4,
        attention_hidden_size=64,
        layers_block_type=["linear_attention", "hybrid"] * 2,
    ),
    "zamba2": partial(
        make,
        "Zamba2Config",
        GROUPED | _ZAMBA,
        mamba_ngroups=1,
        chunk_size=8,
        layers_block_type=["mamba", "hybrid"] * 2,
        adapter_rank=4,
    ),
    "falcon_h1": partial(make, "FalconH1Config", GROUPED | _SSM, mamba_d_ssm=64),
    "granitemoehybrid": partial(
        make,
        "GraniteMoeHybridConfig",
        GROUPED | _SSM,
        num_local_experts=2,
        num_experts_per_tok=1,
        shared_intermediate_size=16,
        layer_types=["mamba", "attention", "mamba"],
    ),
    "nemotron_h": partial(
        make,
        "NemotronHConfig",
        GROUPED,
        num_hidden_layers=4,
        hybrid_override_pattern="M*M-",
        mamba_num_heads=4,
        mamba_head_dim=16,
        ssm_state_size=8,
        n_groups=1,
        chunk_size=8,
    ),
    "qwen3_next": partial(
        make,
        "Qwen3NextConfig",
        GROUPED | _LINEAR,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
    "qwen3_5": partial(make, "Qwen3_5TextConfig", GROUPED | _LINEAR, head_dim=8),
    "olmo_hybrid": partial(make, "OlmoHybridConfig", GROUPED | _LINEAR),
    "minimax": partial(
        make,
        "MiniMaxConfig",
        GROUPED,
        head_dim=8,
        num_hidden_layers=4,
        num_local_experts=2,
        num_experts_per_tok=1,
        block_size=8,
        layer_types=["linear_attention", "full_attention"] * 2,
    ),
}
