"""Tiny random models of real architectures, and a tokenizer for them; all is built in memory."""

from functools import partial

import torch
import transformers as tf
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

import melbo

VOCAB = 96
WIDTH = 32
WINDOW = 4  # window of the sliding-window models, shorter than every prompt of the tests

# Models that take a softmax or route in float32 whatever they compute in, and are exact to float32
# rounding only. Most of them mask with the lowest float64, which is −inf in float32: a position
# without any key, as left padding has, gives nan. Test these in float32 where it occurs.
FLOAT32_INSIDE = frozenset(
    {"bloom", "codegen", "deepseek_v3", "gemma2", "gpt_neo", "gpt_oss", "gptj", "mpt"}
)

_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<|system|>", "<|user|>", "<|assistant|>")
_WORDS = (
    "Tell me how to bake a cake What should I do this weekend ? Write short note my neighbour . "
    "How learn play the guitar Describe walk through city 0 1 2 3 4 5 6 7 8 9 , ! yes no Sure "
    "Sorry he she it you we is was and or not one two red blue cat dog sun"
)
_CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tiny_tokenizer():
    """Words and digits, one id each; ``<s>`` in front of a text; a chat template."""
    words = [*_SPECIAL, *dict.fromkeys(_WORDS.split())]
    words += [f"w{i}" for i in range(VOCAB - len(words))]
    assert len(words) == VOCAB
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens([AddedToken(w, special=True) for w in _SPECIAL])
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", words.index("<s>"))]
    )
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        chat_template=_CHAT,
    )


def tiny_model(name, dtype=torch.float64):
    """The tiny model ``name`` with the tiny tokenizer, freshly built."""
    return melbo.LanguageModel(TINY[name]().to(dtype), tiny_tokenizer(), name=name)


def checkpoint(model, folder):
    """Save a model and the tiny tokenizer as a checkpoint; returns the folder, as a string."""
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def padded(lengths, side="right", vocab=VOCAB, seed=0):
    """Random prompts of these lengths as one batch: ids ``[n, T]`` and mask ``[n, T]``.

    The mask is True on real tokens; padding is id 0.
    """
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    mask = torch.zeros(len(lengths), width, dtype=torch.bool)
    for i, n in enumerate(lengths):
        where = slice(0, n) if side == "right" else slice(width - n, width)
        ids[i, where] = torch.randint(len(_SPECIAL), vocab, (n,), generator=generator)
        mask[i, where] = True
    return ids, mask


def prompts(lengths, vocab=VOCAB, seed=0):
    """Random prompts of these lengths as `melbo.Prompts`."""
    ids, mask = padded(lengths, vocab=vocab, seed=seed)
    tokens = tuple(tuple(row[real].tolist()) for row, real in zip(ids, mask, strict=True))
    return melbo.Prompts(tuple(f"prompt {i}" for i in range(len(lengths))), tokens)


def build(config, seed=0):
    """A model of this configuration.

    Its weights are so far from zero that attention, gates and norms all matter.
    """
    torch.manual_seed(seed)
    numbers = ("num_experts", "num_local_experts", "n_routed_experts")
    experts = {}
    if any(hasattr(config, name) for name in numbers):
        experts = {"experts_implementation": "eager"}  # float64 runs no other
    model = tf.AutoModelForCausalLM.from_config(config, **experts)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    return model


_TOKENS = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SHAPE = _TOKENS | {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_GROUPED = _SHAPE | {"num_key_value_heads": 2}
_GPT = _TOKENS | {"n_embd": WIDTH, "n_layer": 3, "n_head": 4, "n_positions": 64}
_FALCON = _TOKENS | {
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "bias": True,
}
_OPT = _TOKENS | {
    "hidden_size": WIDTH,
    "ffn_dim": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]


def _make(config, shape, **more):
    return build(getattr(tf, config)(**(shape | more)))


# For each name, a builder without arguments. Most have grouped-query attention; gpt2, gemma,
# gemma2, gemma3, falcon, opt and more have tied embeddings.
TINY = {
    "llama": partial(_make, "LlamaConfig", _GROUPED, num_hidden_layers=4),
    "llama_tied": partial(_make, "LlamaConfig", _GROUPED, tie_word_embeddings=True),
    "mistral": partial(_make, "MistralConfig", _GROUPED, head_dim=8, sliding_window=WINDOW),
    "mixtral": partial(
        _make, "MixtralConfig", _GROUPED, num_local_experts=4, num_experts_per_tok=2
    ),
    "qwen2": partial(_make, "Qwen2Config", _GROUPED),
    "qwen2_sliding": partial(
        _make,
        "Qwen2Config",
        _GROUPED,
        use_sliding_window=True,
        sliding_window=WINDOW,
        max_window_layers=1,
    ),
    "qwen3": partial(_make, "Qwen3Config", _GROUPED, head_dim=8),
    "qwen3_moe": partial(_make, "Qwen3MoeConfig", _GROUPED | _EXPERTS, head_dim=8),
    "gemma": partial(_make, "GemmaConfig", _GROUPED, head_dim=8),
    "gemma2": partial(
        _make, "Gemma2Config", _GROUPED, head_dim=8, query_pre_attn_scalar=8, sliding_window=WINDOW
    ),
    "gemma3": partial(
        _make,
        "Gemma3TextConfig",
        _GROUPED,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=WINDOW,
        layer_types=_ALTERNATING,
    ),
    "phi": partial(_make, "PhiConfig", _GROUPED),
    "phi3": partial(_make, "Phi3Config", _GROUPED),
    "olmo": partial(_make, "OlmoConfig", _GROUPED),
    "olmo2": partial(_make, "Olmo2Config", _GROUPED),
    "olmo3": partial(
        _make, "Olmo3Config", _GROUPED, sliding_window=WINDOW, layer_types=_ALTERNATING
    ),
    "olmoe": partial(_make, "OlmoeConfig", _GROUPED, num_experts=4, num_experts_per_tok=2),
    "gpt2": partial(_make, "GPT2Config", _GPT),
    "gpt_bigcode": partial(_make, "GPTBigCodeConfig", _GPT),
    "gptj": partial(_make, "GPTJConfig", _GPT, rotary_dim=4),
    "codegen": partial(_make, "CodeGenConfig", _GPT, rotary_dim=4, n_ctx=64),
    "gpt_neo": partial(
        _make,
        "GPTNeoConfig",
        _TOKENS,
        hidden_size=WIDTH,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=WINDOW,
        max_position_embeddings=64,
    ),
    "gpt_neox": partial(_make, "GPTNeoXConfig", _SHAPE),
    "gpt_oss": partial(
        _make,
        "GptOssConfig",
        _GROUPED,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=WINDOW,
        layer_types=_ALTERNATING,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
    "falcon": partial(_make, "FalconConfig", _FALCON, alibi=False),
    "falcon_grouped": partial(
        _make, "FalconConfig", _FALCON, alibi=False, new_decoder_architecture=True, num_kv_heads=2
    ),
    "falcon_alibi": partial(
        _make, "FalconConfig", _FALCON, alibi=True, parallel_attn=False, multi_query=False
    ),
    "bloom": partial(_make, "BloomConfig", _TOKENS, hidden_size=WIDTH, n_layer=3, n_head=4),
    "mpt": partial(
        _make, "MptConfig", _TOKENS, d_model=WIDTH, n_layers=3, n_heads=4, max_seq_len=64
    ),
    "opt": partial(_make, "OPTConfig", _OPT, word_embed_proj_dim=WIDTH),
    "opt_post_norm": partial(
        _make, "OPTConfig", _OPT, word_embed_proj_dim=16, do_layer_norm_before=False
    ),
    "biogpt": partial(_make, "BioGptConfig", _SHAPE),
    "starcoder2": partial(_make, "Starcoder2Config", _GROUPED, sliding_window=WINDOW),
    "stablelm": partial(_make, "StableLmConfig", _GROUPED),
    "smollm3": partial(_make, "SmolLM3Config", _GROUPED, no_rope_layers=[1, 1, 0]),
    "granite": partial(
        _make,
        "GraniteConfig",
        _GROUPED,
        embedding_multiplier=2.0,
        residual_multiplier=0.5,
        logits_scaling=2.0,
    ),
    "granitemoe": partial(_make, "GraniteMoeConfig", _GROUPED, num_local_experts=4),
    "cohere": partial(_make, "CohereConfig", _GROUPED),
    "cohere2": partial(
        _make, "Cohere2Config", _GROUPED, sliding_window=WINDOW, layer_types=_ALTERNATING
    ),
    "glm": partial(_make, "GlmConfig", _GROUPED, head_dim=8),
    "glm4": partial(_make, "Glm4Config", _GROUPED, head_dim=8),
    "nemotron": partial(_make, "NemotronConfig", _GROUPED),
    "exaone4": partial(
        _make, "Exaone4Config", _GROUPED, sliding_window=WINDOW, layer_types=_ALTERNATING
    ),
    "helium": partial(_make, "HeliumConfig", _GROUPED, head_dim=8),
    "persimmon": partial(_make, "PersimmonConfig", _SHAPE),
    "arcee": partial(_make, "ArceeConfig", _GROUPED),
    "seed_oss": partial(_make, "SeedOssConfig", _GROUPED, head_dim=8),
    "deepseek_v3": partial(
        _make,
        "DeepseekV3Config",
        _SHAPE,
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
    "lfm2": partial(_make, "Lfm2Config", _GROUPED, layer_types=["conv", "full_attention", "conv"]),
    "recurrent_gemma": partial(
        _make, "RecurrentGemmaConfig", _GROUPED, lru_width=WIDTH, attention_window_size=WINDOW
    ),
}
