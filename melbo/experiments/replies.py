"""Many replies to a prompt: of as many features, or drawn at a temperature, which is the cheapest way to make a model say something else."""

import torch

from ..bank import Bank
from ..edit import Several
from ..generate import Completion, decode, generate
from ..model import LanguageModel
from ..prompts import Prompts

#: In the place of a way's name.
TEMPERATURE = "temperature"


def steered(lm: LanguageModel, prompts: Prompts, bank: Bank, strength: float, max_new_tokens: int) -> list[list[Completion]]:
    """Replies to each prompt, one of each feature, at a multiple of R."""
    table = generate(lm, prompts, bank, max_new_tokens=max_new_tokens, strength=strength, progress=False)
    return [[c for c in table if c.kind == "feature" and c.prompt == p] for p in range(len(prompts))]


def drawn(lm: LanguageModel, prompts: Prompts, num: int, temperature: float, max_new_tokens: int, seed: int) -> list[list[Completion]]:
    """``num`` replies to each prompt, drawn at a temperature."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        asked = [tokens for tokens in prompts.tokens for _ in range(num)]
        said = decode(lm, asked, Several(()), max_new_tokens, progress=False, temperature=temperature)
    texts = lm.tokenizer.batch_decode(said, skip_special_tokens=True)
    rows = [Completion("drawn", j % num, j // num, prompts.texts[j // num], texts[j], tuple(said[j])) for j in range(len(said))]
    return [rows[p * num : (p + 1) * num] for p in range(len(prompts))]
