"""CAA: a direction from pairs of prompts with and without a behaviour (docs/method.md §7)."""

import torch

from melbo.discovery.fit import fit
from melbo.errors import MelboError
from melbo.features.directions import FeatureSet
from melbo.maps.residual import CausalMap
from melbo.methods.fixed import Given
from melbo.models.text.prompts import Prompts, require_prompts


def caa(
    cmap: CausalMap,
    plus: Prompts,
    minus: Prompts,
    coefficient: float = 1.0,
    *,
    from_last: bool = True,
) -> FeatureSet:
    """Contrastive activation addition: mean over pairs of h₊ − h₋ at the last token.

    As published, the vector is added at the last token of a prompt and at every generated one.

    Source: Rimsky et al. (2024).

    Args:
        cmap: Map whose source layer is where activations are taken and the vector is added; its
            prompts are where the effect is measured.
        plus: Prompts with the behaviour.
        minus: Prompts without it, one for each of ``plus``.
        coefficient: Scale R of the feature, as a multiple of the norm of the mean difference.
        from_last: Whether the vector is added, and its effect read, from the last token of a prompt
            on; otherwise at the tokens of the map.

    Raises:
        MelboError: The sides have different numbers of prompts, the coefficient is not positive, or
            there is no difference.
    """
    require_prompts(plus=plus, minus=minus)
    if len(plus) != len(minus):
        raise MelboError(
            f"got {len(plus)} prompts with the behaviour and {len(minus)} without it: "
            "expected pairs"
        )
    with_it, without = (
        torch.stack([cmap.lm.activations(tokens, cmap.source)[-1] for tokens in side.tokens])
        for side in (plus, minus)
    )
    difference = (with_it - without).to(torch.float32).mean(0)
    norm = difference.norm().item()
    if not norm > 0 or not coefficient > 0:
        raise MelboError(
            f"the mean difference has norm {norm:g} and the coefficient is {coefficient}: "
            "expected more than 0 of each"
        )
    rows = tuple(map(tuple, difference[None].tolist()))
    if from_last:
        last = {"positions": "target", "target_tokens": 1, "skip_first": False}
        cmap = CausalMap.from_description(cmap.lm, {**cmap.describe(), **last})
    return fit(cmap, Given(1, coefficient * norm, rows), progress=False).features
