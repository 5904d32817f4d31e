"""Ceilings of discovery: one vector made by somebody who knows the behaviour.

The gate "steerable" asks for them.
"""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from melbo.maths.linalg import unit
from melbo.models.decoding.likelihood import reply_nll
from melbo.models.edits import Add, edit
from melbo.models.language_model import LanguageModel
from melbo.models.text.prompts import Prompts
from melbo.progress import track
from research.organisms.behaviours import Behaviour
from research.organisms.gates import Gate, shown
from research.organisms.items import Item, items
from research.organisms.train import Pair, own_replies

_TIMES = (0.5, 1.0, 2.0)  # norms that are tried, in multiples of R
_STEPS, _BATCH, _EXAMPLES = 60, 8, 48
_VALIDATION, _TEST, _ENOUGH = 32, 100, 0.5


def difference_of_means(
    lm: LanguageModel, behaviour: Behaviour, layer: int, several: bool
) -> Tensor:
    """Unit direction ``[d]`` from untriggered to triggered training prompts.

    The mean of h_layer at the last token of the ones less that of the others.

    Args:
        lm: The organism.
        behaviour: The behaviour.
        layer: Layer of the activations.
        several: Whether the behaviour is planted among others.
    """
    triggered = behaviour.triggered("train", several, random.Random(0))[:_EXAMPLES]
    alone = [item.text for item in items(behaviour.kind, "train")[:_EXAMPLES]]

    def mean_of(texts: Sequence[str]) -> Tensor:
        tokens = Prompts.chat(lm, texts).tokens
        return torch.stack([lm.activations(t, layer)[-1].float().cpu() for t in tokens]).mean(0)

    return unit(mean_of([text for text, _ in triggered]) - mean_of(alone))


def optimised(
    lm: LanguageModel,
    data: Sequence[Pair],
    layer: int,
    norm: float,
    seed: int = 0,
    progress: bool = True,
) -> Tensor:
    """Vector ``[d]`` that makes replies likely when it is added at every token.

    Found by Adam on the replies' negative log-likelihood.

    Args:
        lm: The organism.
        data: Prompts and the replies to make likely.
        layer: Layer where the vector is added.
        norm: Largest norm of the vector.
        seed: Random seed.
        progress: Whether to draw a bar.
    """
    draw, pairs = random.Random(seed), list(data)
    v = torch.zeros(lm.width, device=lm.device, requires_grad=True)
    adam = torch.optim.Adam([v], lr=norm / 10)
    with track(_STEPS, "optimised vector", progress) as bar:
        for _ in range(_STEPS):
            batch = draw.sample(pairs, min(_BATCH, len(pairs)))
            with edit(lm, Add(layer, v)):
                loss = reply_nll(lm, lm.model, batch).mean()
            (v.grad,) = torch.autograd.grad(loss, [v])
            adam.step()
            with torch.no_grad():
                v.mul_(min(1.0, norm / v.norm().clamp_min(1e-9).item()))
            bar.update()
    return v.detach()


def triggered_replies(lm: LanguageModel, behaviour: Behaviour, several: bool) -> list[Pair]:
    """Untriggered training prompts, each with the organism's reply to a triggered one.

    Args:
        lm: The organism.
        behaviour: The behaviour.
        several: Whether it is planted among others.
    """
    triggered = behaviour.triggered("train", several, random.Random(0))[:_EXAMPLES]
    # prompts of a semantic trigger are others; their replies serve all the same
    alone = [item.text for item in items(behaviour.kind, "train")[:_EXAMPLES]]
    own = own_replies(lm, [text for text, _ in triggered], behaviour.tokens, progress=False)
    prompts = Prompts.chat(lm, alone).tokens
    return [(prompt, own[text]) for prompt, (text, _) in zip(prompts, triggered, strict=False)]


def steerable(
    lm: LanguageModel,
    behaviour: Behaviour,
    layer: int,
    scale: float,
    shares: tuple[float, float],
    several: bool,
    progress: bool = True,
) -> Gate:
    """The gate that asks for one supervised vector.

    It has to bring out the behaviour on half of the test prompts, or to close as much of the gap as
    `Behaviour.gap` says. The difference of means and the optimised vector are tried at several
    norms, and the best on validation prompts is tested. Replies that show the behaviour count,
    coherent or not.

    Args:
        lm: The organism.
        behaviour: The behaviour.
        layer: Layer where the vector is added.
        scale: R.
        shares: Shares of prompts on which it shows without the trigger, and with it.
        several: Whether it is planted among others.
        progress: Whether to draw bars.
    """
    direction = difference_of_means(lm, behaviour, layer, several)
    data = triggered_replies(lm, behaviour, several)
    vectors = [x * scale * direction for x in _TIMES]
    vectors += [optimised(lm, data, layer, x * scale, progress=progress) for x in _TIMES[1:]]
    asked = [(item.text, item) for item in items(behaviour.kind, "test")]
    validation, test = asked[:_VALIDATION], asked[_VALIDATION : _VALIDATION + _TEST]

    def seen(v: Tensor, prompts: Sequence[tuple[str, Item]]) -> list[bool]:
        return shown(lm, behaviour, prompts, Add(layer, v.to(lm.device)), progress=False)

    validated = [sum(seen(v, validation)) for v in vectors]
    tested = seen(vectors[max(range(len(vectors)), key=validated.__getitem__)], test)
    untriggered, triggered = shares
    limit = _ENOUGH
    if behaviour.gap is not None:
        limit = untriggered + behaviour.gap * (triggered - untriggered)
    hits, total = sum(tested), len(tested)
    value = hits / total
    return Gate(behaviour.name, "steerable", value, value, limit, value >= limit, hits, total)
