"""Directions that nothing was learnt for: the controls that any method has to beat."""

import torch
from torch import Tensor

from melbo.errors import MelboError
from melbo.maths.linalg import random_rows, unit
from melbo.models.language_model import LanguageModel
from melbo.models.text.built_in import REFERENCE
from melbo.models.text.prompts import Prompts
from melbo.models.weights.output_matrices import attention_output, output_matrices


def control(
    lm: LanguageModel, like: Prompts, layer: int, name: str, m: int, generator: torch.Generator
) -> Tensor:
    """Directions that nothing was learnt for, unit rows ``[m, d]``.

    Args:
        lm: The model.
        like: Prompts of the fit; ordinary ones (`melbo.models.text.built_in.REFERENCE`) are
            read as they are, with a chat template or without.
        layer: Layer at which activations are taken.
        name: One of four controls. ``"random"`` draws from the sphere uniformly. ``"covariance"``
            draws from a normal distribution with the covariance of activations on ordinary prompts,
            their first tokens left out. ``"unrelated"`` takes h − h' at the last tokens of two
            ordinary prompts, drawn at random. ``"columns"`` takes what single neurons of the MLP
            before the layer write, neurons and signs drawn at random.
        m: Number of directions.
        generator: Source of everything random.

    Raises:
        MelboError: The name is another one, or ``"columns"`` is asked for more directions than the
            MLP has neurons, or at a layer that no block comes before.
    """
    if name not in ("random", "covariance", "unrelated", "columns"):
        raise MelboError(f"no control {name!r}: expected random, covariance, unrelated or columns")
    if name == "random":
        return random_rows(m, lm.width, generator)
    if name == "columns":
        columns = _columns(lm, layer)
        if m > len(columns):
            raise MelboError(
                f"got m={m}, but the MLP before layer {layer} has {len(columns)} neurons: "
                "ask for as many at most"
            )
        drawn = columns[torch.randperm(len(columns), generator=generator)[:m]]
        return unit(drawn * (1 - 2 * torch.randint(2, (m, 1), generator=generator)))
    ordinary = like.like(lm, REFERENCE)
    streams = [lm.activations(tokens, layer).float().cpu() for tokens in ordinary.tokens]
    if name == "covariance":
        every = torch.cat([h[1:] for h in streams])
        return unit(torch.randn(m, len(every), generator=generator) @ (every - every.mean(0)))
    last = torch.stack([h[-1] for h in streams])
    pairs = torch.stack([torch.randperm(len(last), generator=generator)[:2] for _ in range(m)])
    return unit(last[pairs[:, 0]] - last[pairs[:, 1]])


def _columns(lm: LanguageModel, layer: int) -> Tensor:
    """Vector that each neuron of the MLP before a layer writes, all experts', ``[neurons, d]``.

    Raises:
        MelboError: No block comes before the layer.
    """
    if layer == 0:
        raise MelboError(
            "no block comes before layer 0: columns are of the MLP there; choose a later source"
        )
    attention = attention_output(lm, layer - 1).name
    columns = []
    for matrix in output_matrices(lm, layer - 1):
        if matrix.name == attention:
            continue
        rows = matrix.weight.detach().movedim(matrix.axis, -1).flatten(0, -2).float().cpu()
        columns.append(rows if matrix.gain is None else rows * matrix.gain.float().cpu())
    return torch.cat(columns)
