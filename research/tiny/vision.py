"""Tiny models that read pictures too, some with as many blocks for pictures as for text."""

from functools import partial
from typing import Any

import transformers as tf

from research.tiny.build import GROUPED, Builder, build

_TEXT = {k: v for k, v in GROUPED.items() if k not in ("bos_token_id", "eos_token_id")}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


def _make(config: str, text: dict[str, Any], vision: dict[str, Any], **more: Any) -> Any:
    config_class = getattr(tf, config)
    made = config_class(text_config=_TEXT | text, vision_config=_VISION | vision, **more)
    return build(made, auto=tf.AutoModelForImageTextToText)


VISION: dict[str, Builder] = {
    "llava": partial(
        _make,
        "LlavaConfig",
        {"model_type": "llama"},
        {"model_type": "clip_vision_model"},
        image_token_id=63,
    ),
    "internvl": partial(
        _make,
        "InternVLConfig",
        {"model_type": "qwen2"},
        {"image_size": [16, 16], "patch_size": [8, 8]},
        image_token_id=63,
    ),
    "gemma3_vision": partial(
        _make,
        "Gemma3Config",
        {"head_dim": 8, "sliding_window": 4},
        {},
        image_token_index=63,
        mm_tokens_per_image=4,
    ),
    "idefics3": partial(_make, "Idefics3Config", {"model_type": "llama"}, {}, image_token_id=63),
    "paligemma": partial(
        _make,
        "PaliGemmaConfig",
        {"model_type": "gemma", "head_dim": 8},
        {"model_type": "siglip_vision_model"},
        image_token_index=63,
        projection_dim=GROUPED["hidden_size"],
    ),
}
