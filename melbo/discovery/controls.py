"""Directions that nobody learnt: what any method has to beat."""

import torch
from torch import Tensor

from melbo.errors import MelboError
from melbo.maths.linalg import random_rows, unit
from melbo.models.language_model import LanguageModel
from melbo.models.output_matrices import attention_output, output_matrices
from melbo.models.prompts import REFERENCE, Prompts


def control(
    lm: LanguageModel, like: Prompts, layer: int, name: str, m: int, generator: torch.Generator
) -> Tensor:
    """Directions that nobody learnt, unit rows ``[m, d]``.

    Args:
        lm: The model.
        like: Ordinary prompts (`melbo.prompts.REFERENCE`) are read as these are, with or without a chat template.
        layer: Where activations are taken.
        name: ``"random"``: uniform on the sphere. ``"covariance"``: normal, with the covariance of activations on ordinary prompts, their first
            tokens left out. ``"unrelated"``: h − h' at the last tokens of two ordinary prompts, drawn at random. ``"columns"``: what single
            neurons of the MLP before the layer write, drawn at random, either sign.
        m: How many.
        generator: Of everything random.

    Raises:
        MelboError: Another name, or the MLP's output at a layer that no block comes before, or of fewer neurons than ``m``.
    """
    if name not in ("random", "covariance", "unrelated", "columns"):
        raise MelboError(f"no control {name!r}: expected random, covariance, unrelated or columns")
    if name == "random":
        return random_rows(m, lm.width, generator)
    if name == "columns":
        columns = _columns(lm, layer)
        if m > len(columns):
            raise MelboError(
                f"got m={m}, but the MLP before layer {layer} has {len(columns)} neurons: ask for as many at most"
            )
        drawn = columns[torch.randperm(len(columns), generator=generator)[:m]]
        return unit(drawn * (1 - 2 * torch.randint(2, (m, 1), generator=generator)))
    ordinary = (
        Prompts.text(lm, REFERENCE)
        if like.kind == "text"
        else Prompts.chat(lm, REFERENCE, like.system)
    )
    streams = [lm.activations(tokens, layer).float().cpu() for tokens in ordinary.tokens]
    if name == "covariance":
        every = torch.cat([h[1:] for h in streams])
        return unit(torch.randn(m, len(every), generator=generator) @ (every - every.mean(0)))
    last = torch.stack([h[-1] for h in streams])
    pairs = torch.stack([torch.randperm(len(last), generator=generator)[:2] for _ in range(m)])
    return unit(last[pairs[:, 0]] - last[pairs[:, 1]])


def _columns(lm: LanguageModel, layer: int) -> Tensor:
    """What each neuron of the MLP before a layer writes to the stream, of all experts where there are several, ``[neurons, d]``."""
    if layer == 0:
        raise MelboError(
            "no block comes before layer 0: columns are of the MLP there; choose a later source"
        )
    mixes = attention_output(lm, layer - 1).name
    found = []
    for writer in (w for w in output_matrices(lm, layer - 1) if w.name != mixes):
        rows = writer.weight.detach().movedim(writer.axis, -1).flatten(0, -2).float().cpu()
        found.append(rows if writer.gain is None else rows * writer.gain.float().cpu())
    return torch.cat(found)
