"""One way to build a tiny model: its sizes, its tokenizer, and weights for which all matters."""

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

#: Builds a model, the same weights each time.
Builder = Callable[[], Any]

VOCAB = 96
WIDTH = 32
#: Window of the sliding-window models, shorter than every prompt that they are given.
WINDOW = 4
#: Tokens that are no words; their ids come first.
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<|system|>", "<|user|>", "<|assistant|>")

TOKENS = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SHAPE = TOKENS | {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = SHAPE | {"num_key_value_heads": 2}

_WORDS = (
    "Tell me how to bake a cake What should I do this weekend ? Write short note my neighbour . "
    "How learn play the guitar Describe walk through city 0 1 2 3 4 5 6 7 8 9 , ! yes no Sure "
    "Sorry he she it you we is was and or not one two red blue cat dog sun"
)
_CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tiny_tokenizer() -> Any:
    """Words and digits, one id each; ``<s>`` in front of a text; a chat template."""
    words = [*SPECIAL, *dict.fromkeys(_WORDS.split())]
    words += [f"w{i}" for i in range(VOCAB - len(words))]
    assert len(words) == VOCAB
    ids = {word: i for i, word in enumerate(words)}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens([AddedToken(w, special=True) for w in SPECIAL])
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", words.index("<s>"))]
    )
    fast: Any = tf.PreTrainedTokenizerFast
    return fast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        chat_template=_CHAT,
    )


def build(config: Any, seed: int = 0, auto: Any = tf.AutoModelForCausalLM) -> Any:
    """A model of this configuration.

    Its weights are so far from zero that attention, gates and norms all matter.

    Args:
        config: The configuration.
        seed: Seed of the weights.
        auto: Class of transformers that makes the model.
    """
    torch.manual_seed(seed)
    numbers = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    experts = {}
    if any(hasattr(config, name) for name in numbers):
        experts = {"experts_implementation": "eager"}  # float64 runs no other
    model = auto.from_config(config, **experts)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    return model


def make(config: str, shape: dict[str, Any], **more: Any) -> Any:
    """A model of the configuration class of transformers that has this name.

    Args:
        config: Name of the class.
        shape: Its arguments.
        more: Further arguments, which come first.
    """
    return build(getattr(tf, config)(**(shape | more)))
