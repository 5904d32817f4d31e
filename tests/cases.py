"""Tiny models and their tokenizer as tests use them; random prompts; checkpoints."""

import torch

import melbo
from research.tiny.architectures import FLOAT32_INSIDE as FLOAT32_INSIDE
from research.tiny.architectures import TINY as TINY
from research.tiny.build import SPECIAL
from research.tiny.build import VOCAB as VOCAB
from research.tiny.build import WIDTH as WIDTH
from research.tiny.build import WINDOW as WINDOW
from research.tiny.build import build as build
from research.tiny.build import tiny_tokenizer as tiny_tokenizer


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
        ids[i, where] = torch.randint(len(SPECIAL), vocab, (n,), generator=generator)
        mask[i, where] = True
    return ids, mask


def prompts(lengths, vocab=VOCAB, seed=0):
    """Random prompts of these lengths as `melbo.Prompts`."""
    ids, mask = padded(lengths, vocab=vocab, seed=seed)
    tokens = tuple(tuple(row[real].tolist()) for row, real in zip(ids, mask, strict=True))
    return melbo.Prompts(tuple(f"prompt {i}" for i in range(len(lengths))), tokens)
