"""Fifty decoders in a few layers each, by the names of their architectures."""

from functools import partial

from research.tiny.build import GROUPED, SHAPE, TOKENS, WIDTH, WINDOW, Builder, make

# Models that take a softmax or route in float32 whatever they compute in, and are exact to float32
# rounding only. Most of them mask with the lowest float64, which is −inf in float32: a position
# without any key, as left padding has, gives nan. Test these in float32 where it occurs.
FLOAT32_INSIDE = frozenset(
    {"bloom", "codegen", "deepseek_v3", "gemma2", "gpt_neo", "gpt_oss", "gptj", "mpt"}
)

_GPT = TOKENS | {"n_embd": WIDTH, "n_layer": 3, "n_head": 4, "n_positions": 64}
_FALCON = TOKENS | {
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "bias": True,
}
_OPT = TOKENS | {
    "hidden_size": WIDTH,
    "ffn_dim": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]


#: For each name, a builder without arguments. Most have grouped-query attention; gpt2, gemma,
#: gemma2, gemma3, falcon, opt and more have tied embeddings.
TINY: dict[str, Builder] = {
    "llama": partial(make, "LlamaConfig", GROUPED, num_hidden_layers=4),
    "llama_tied": partial(make, "LlamaConfig", GROUPED, tie_word_embeddings=True),
    "mistral": partial(make, "MistralConfig", GROUPED, head_dim=8, sliding_window=WINDOW),
    "mixtral": partial(make, "MixtralConfig", GROUPED, num_local_experts=4, num_experts_per_tok=2),
    "qwen2": partial(make, "Qwen2Config", GROUPED),
    "qwen2_sliding": partial(
        make,
        "Qwen2Config",
        GROUPED,
        use_sliding_window=True,
        sliding_window=WINDOW,
        max_window_layers=1,
    ),
    "qwen3": partial(make, "Qwen3Config", GROUPED, head_dim=8),
    "qwen3_moe": partial(make, "Qwen3MoeConfig", GROUPED | _EXPERTS, head_dim=8),
    "gemma": partial(make, "GemmaConfig", GROUPED, head_dim=8),
    "gemma2": partial(
        make, "Gemma2Config", GROUPED, head_dim=8, query_pre_attn_scalar=8, sliding_window=WINDOW
    ),
    "gemma3": partial(
        make,
        "Gemma3TextConfig",
        GROUPED,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=WINDOW,
        layer_types=_ALTERNATING,
    ),
    "phi": partial(make, "PhiConfig", GROUPED),
    "phi3": partial(make, "Phi3Config", GROUPED),
    "olmo": partial(make, "OlmoConfig", GROUPED),
    "olmo2": partial(make, "Olmo2Config", GROUPED),
    "olmo3": partial(make, "Olmo3Config", GROUPED, sliding_window=WINDOW, layer_types=_ALTERNATING),
    "olmoe": partial(make, "OlmoeConfig", GROUPED, num_experts=4, num_experts_per_tok=2),
    "gpt2": partial(make, "GPT2Config", _GPT),
    "gpt_bigcode": partial(make, "GPTBigCodeConfig", _GPT),
    "gptj": partial(make, "GPTJConfig", _GPT, rotary_dim=4),
    "codegen": partial(make, "CodeGenConfig", _GPT, rotary_dim=4, n_ctx=64),
    "gpt_neo": partial(
        make,
        "GPTNeoConfig",
        TOKENS,
        hidden_size=WIDTH,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=WINDOW,
        max_position_embeddings=64,
    ),
    "gpt_neox": partial(make, "GPTNeoXConfig", SHAPE),
    "gpt_oss": partial(
        make,
        "GptOssConfig",
        GROUPED,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=WINDOW,
        layer_types=_ALTERNATING,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
    "falcon": partial(make, "FalconConfig", _FALCON, alibi=False),
    "falcon_grouped": partial(
        make, "FalconConfig", _FALCON, alibi=False, new_decoder_architecture=True, num_kv_heads=2
    ),
    "falcon_alibi": partial(
        make, "FalconConfig", _FALCON, alibi=True, parallel_attn=False, multi_query=False
    ),
    "bloom": partial(make, "BloomConfig", TOKENS, hidden_size=WIDTH, n_layer=3, n_head=4),
    "mpt": partial(make, "MptConfig", TOKENS, d_model=WIDTH, n_layers=3, n_heads=4, max_seq_len=64),
    "opt": partial(make, "OPTConfig", _OPT, word_embed_proj_dim=WIDTH),
    "opt_post_norm": partial(
        make, "OPTConfig", _OPT, word_embed_proj_dim=16, do_layer_norm_before=False
    ),
    "biogpt": partial(make, "BioGptConfig", SHAPE),
    "starcoder2": partial(make, "Starcoder2Config", GROUPED, sliding_window=WINDOW),
    "stablelm": partial(make, "StableLmConfig", GROUPED),
    "smollm3": partial(make, "SmolLM3Config", GROUPED, no_rope_layers=[1, 1, 0]),
    "granite": partial(
        make,
        "GraniteConfig",
        GROUPED,
        embedding_multiplier=2.0,
        residual_multiplier=0.5,
        logits_scaling=2.0,
    ),
    "granitemoe": partial(make, "GraniteMoeConfig", GROUPED, num_local_experts=4),
    "cohere": partial(make, "CohereConfig", GROUPED),
    "cohere2": partial(
        make, "Cohere2Config", GROUPED, sliding_window=WINDOW, layer_types=_ALTERNATING
    ),
    "glm": partial(make, "GlmConfig", GROUPED, head_dim=8),
    "glm4": partial(make, "Glm4Config", GROUPED, head_dim=8),
    "nemotron": partial(make, "NemotronConfig", GROUPED),
    "exaone4": partial(
        make, "Exaone4Config", GROUPED, sliding_window=WINDOW, layer_types=_ALTERNATING
    ),
    "helium": partial(make, "HeliumConfig", GROUPED, head_dim=8),
    "persimmon": partial(make, "PersimmonConfig", SHAPE),
    "arcee": partial(make, "ArceeConfig", GROUPED),
    "seed_oss": partial(make, "SeedOssConfig", GROUPED, head_dim=8),
    "deepseek_v3": partial(
        make,
        "DeepseekV3Config",
        SHAPE,
        num_key_value_heads=4,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
        kv_lora_rank=8,
        q_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=8,
    ),
    "lfm2": partial(make, "Lfm2Config", GROUPED, layer_types=["conv", "full_attention", "conv"]),
    "recurrent_gemma": partial(
        make, "RecurrentGemmaConfig", GROUPED, lru_width=WIDTH, attention_window_size=WINDOW
    ),
}
