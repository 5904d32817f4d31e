"""Directions that nobody learnt: what any method has to beat."""

import torch
from torch import Tensor

from .errors import MelboError
from .linalg import random_rows, unit
from .model import LanguageModel
from .prompts import REFERENCE, Prompts
from .sara import activations


def control(lm: LanguageModel, like: Prompts, layer: int, name: str, m: int, generator: torch.Generator) -> Tensor:
    """Directions that nobody learnt, unit rows ``[m, d]``.

    Args:
        lm: The model.
        like: Ordinary prompts (`melbo.prompts.REFERENCE`) are read as these are, with or without a chat template.
        layer: Where activations are taken.
        name: ``"random"``: uniform on the sphere. ``"covariance"``: normal, with the covariance of activations on ordinary prompts, their first
            tokens left out. ``"unrelated"``: h − h' at the last tokens of two ordinary prompts, drawn at random.
        m: How many.
        generator: Of everything random.

    Raises:
        MelboError: Another name.
    """
    if name not in ("random", "covariance", "unrelated"):
        raise MelboError(f"no control {name!r}: expected random, covariance or unrelated")
    if name == "random":
        return random_rows(m, lm.width, generator)
    ordinary = Prompts.text(lm, REFERENCE) if like.kind == "text" else Prompts.chat(lm, REFERENCE, like.system)
    streams = [activations(lm, tokens, layer).float().cpu() for tokens in ordinary.tokens]
    if name == "covariance":
        every = torch.cat([h[1:] for h in streams])
        return unit(torch.randn(m, len(every), generator=generator) @ (every - every.mean(0)))
    last = torch.stack([h[-1] for h in streams])
    pairs = torch.stack([torch.randperm(len(last), generator=generator)[:2] for _ in range(m)])
    return unit(last[pairs[:, 0]] - last[pairs[:, 1]])
