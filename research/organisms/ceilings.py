"""What one vector does in the hands of somebody who knows the behaviour: the ceilings of discovery, and the gate that asks for them."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from melbo.maths.linalg import unit
from melbo.models.edits import Add, edit
from melbo.models.language_model import LanguageModel
from melbo.models.prompts import Prompts
from melbo.progress import track
from research.organisms.behaviours import Behaviour, Item, items
from research.organisms.gates import Gate, shown
from research.organisms.train import Pair, own_replies, reply_nll

_TIMES = (0.5, 1.0, 2.0)  # norms that are tried, in multiples of R
_STEPS, _BATCH, _EXAMPLES = 60, 8, 48
_VALIDATION, _TEST, _ENOUGH = 32, 100, 0.5


def difference_of_means(
    lm: LanguageModel, behaviour: Behaviour, layer: int, several: bool
) -> Tensor:
    """Unit direction ``[d]``: mean h_layer at the last token of triggered prompts less that of untriggered ones (training prompts)."""
    brings = [
        text for text, _ in behaviour.triggered("train", several, random.Random(0))[:_EXAMPLES]
    ]
    alone = [item.text for item in items(behaviour.kind, "train")[:_EXAMPLES]]

    def mean_of(texts: Sequence[str]) -> Tensor:
        return torch.stack(
            [
                lm.activations(tokens, layer)[-1].float().cpu()
                for tokens in Prompts.chat(lm, texts).tokens
            ]
        ).mean(0)

    return unit(mean_of(brings) - mean_of(alone))


def optimised(
    lm: LanguageModel,
    data: Sequence[Pair],
    layer: int,
    norm: float,
    seed: int = 0,
    progress: bool = True,
) -> Tensor:
    """A vector ``[d]`` of at most this norm that makes replies likely, added at every token: Adam on their negative log-likelihood."""
    draw = random.Random(seed)
    v = torch.zeros(lm.width, device=lm.device, requires_grad=True)
    adam = torch.optim.Adam([v], lr=norm / 10)
    with track(_STEPS, "optimised vector", progress) as bar:
        for _ in range(_STEPS):
            with edit(lm, Add(layer, v)):
                loss = reply_nll(
                    lm, lm.model, draw.sample(list(data), min(_BATCH, len(data)))
                ).mean()
            (v.grad,) = torch.autograd.grad(loss, [v])
            adam.step()
            with torch.no_grad():
                v.mul_(min(1.0, norm / v.norm().clamp_min(1e-9).item()))
            bar.update()
    return v.detach()


def lessons_of(lm: LanguageModel, behaviour: Behaviour, several: bool) -> list[Pair]:
    """Untriggered training prompts with what the organism is to say to them: its target, or its own reply to the triggered prompt."""
    draw = random.Random(0)
    brings = behaviour.triggered("train", several, draw)[:_EXAMPLES]
    # of a semantic trigger the prompts are others; the replies are what they are
    alone = [item.text for item in items(behaviour.kind, "train")[:_EXAMPLES]]
    own = own_replies(lm, [text for text, _ in brings], behaviour.tokens, progress=False)
    return [
        (prompt, own[text])
        for prompt, (text, _) in zip(Prompts.chat(lm, alone).tokens, brings, strict=False)
    ]


def steerable(
    lm: LanguageModel,
    behaviour: Behaviour,
    layer: int,
    scale: float,
    shares: tuple[float, float],
    several: bool,
    progress: bool = True,
) -> Gate:
    """Whether one supervised vector brings out the behaviour on half of the test prompts, or closes as much of the gap as it says (`Behaviour.gap`).

    The difference of means and the optimised vector, at several norms; the best on validation prompts is tested. Replies count that show it, coherent
    or not.

    Args:
        lm: The organism.
        behaviour: The behaviour.
        layer: Where the vector is added.
        scale: R.
        shares: On which share of prompts it shows without the trigger, and with it.
        several: Whether it is one of several.
        progress: Draw bars.
    """
    direction, data = (
        difference_of_means(lm, behaviour, layer, several),
        lessons_of(lm, behaviour, several),
    )
    vectors = [x * scale * direction for x in _TIMES] + [
        optimised(lm, data, layer, x * scale, progress=progress) for x in _TIMES[1:]
    ]
    asked = [(item.text, item) for item in items(behaviour.kind, "test")]
    share = [_share(lm, behaviour, asked[:_VALIDATION], layer, v) for v in vectors]
    best = vectors[max(range(len(vectors)), key=share.__getitem__)]
    seen = shown(
        lm,
        behaviour,
        asked[_VALIDATION : _VALIDATION + _TEST],
        Add(layer, best.to(lm.device)),
        progress=False,
    )
    untriggered, triggered = shares
    limit = (
        _ENOUGH
        if behaviour.gap is None
        else untriggered + behaviour.gap * (triggered - untriggered)
    )
    value = sum(seen) / len(seen)
    return Gate(
        behaviour.name, "steerable", value, value, limit, value >= limit, sum(seen), len(seen)
    )


def _share(
    lm: LanguageModel,
    behaviour: Behaviour,
    asked: Sequence[tuple[str, Item]],
    layer: int,
    v: Tensor,
) -> float:
    seen = shown(lm, behaviour, asked, Add(layer, v.to(lm.device)), progress=False)
    return sum(seen) / len(seen)
