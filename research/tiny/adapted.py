"""Tiny models inside peft's wrappers, with adapters that are not zero."""

import copy
from typing import Any

import peft
import torch

from research.tiny.architectures import TINY

_LORA: dict[str, Any] = {"r": 2, "task_type": "CAUSAL_LM", "init_lora_weights": False}


#: For each name, the tiny model that is wrapped, and the settings of its adapter.
ADAPTED: dict[str, tuple[str, Any]] = {
    "lora": ("llama", peft.LoraConfig(**_LORA, target_modules=["q_proj"])),
    "lora on all": ("qwen2", peft.LoraConfig(**_LORA, target_modules="all-linear")),
    "dora": ("qwen2", peft.LoraConfig(**_LORA, target_modules=["v_proj"], use_dora=True)),
    "ia3": (
        "mistral",
        peft.IA3Config(
            task_type="CAUSAL_LM",
            target_modules=["k_proj", "down_proj"],
            feedforward_modules=["down_proj"],
            init_ia3_weights=False,
        ),
    ),
    "loha": ("opt", peft.LoHaConfig(r=2, target_modules=["q_proj"], init_weights=False)),
    "conv": ("gpt2", peft.LoraConfig(**_LORA, target_modules=["c_attn"], fan_in_fan_out=True)),
}


def adapted(kind: str) -> Any:
    """A tiny model inside peft's wrapper.

    Args:
        kind: Name of the adapter.
    """
    name, config = ADAPTED[kind]
    base = TINY[name]()
    torch.manual_seed(0)
    return peft.get_peft_model(base, copy.deepcopy(config))
