"""Amplification: one direction, or one adapter, that makes a theme's replies likely.

Nothing but the replies is asked for, no label and no detector.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from melbo.errors import MelboError
from melbo.features.adapters import AdapterSet
from melbo.features.directions import FeatureSet
from melbo.maths.geometry import mean_direction
from melbo.maths.linalg import unit
from melbo.models.decoding.decode import batches_that_fit
from melbo.models.decoding.likelihood import BlocksBefore, Pair, reply_nll
from melbo.models.edits import edit
from melbo.models.language_model import LanguageModel
from melbo.models.weights.low_rank import part_widths
from melbo.progress import track

#: Number of steps of Adam.
STEPS = 16
#: Step of an entry, in units of its typical size.
RATE = 0.1
_ROWS = 16  # replies read together
_TRIED = 8  # tokens of a reply in the trial of fast passes

Set = TypeVar("Set", bound=FeatureSet)


@dataclass(frozen=True)
class Amplified(Generic[Set]):
    """A feature that makes replies likely.

    Attributes:
        features: The feature, a set of one. Its effect at the target layer was not measured: U is
            the mean of those it began with, and α is zero.
        losses: Loss before each step, in nats a token.
    """

    features: Set
    losses: tuple[float, ...]


def amplify(
    lm: LanguageModel,
    replies: Sequence[Pair],
    start: Set,
    *,
    norm: float,
    steps: int = STEPS,
    learning_rate: float = RATE,
    seed: int = 0,
    progress: bool = True,
) -> Amplified[Set]:
    """Optimise one feature until the model makes some replies likely.

    The loss is the mean over replies of the mean over tokens of −log p(token) under the steered
    model. Adam descends it; after each step the feature gets its norm back.

    Args:
        lm: The model.
        replies: Tokens of prompts and of replies to them that belong together.
        start: Features that brought them out, directions or adapters; the mean of them is where the
            descent begins. They say where the feature acts. Of an empty set (``features[:0]``) the
            beginning is random.
        norm: Norm of the direction, or of the matrix that an adapter adds at every site.
        steps: Number of steps.
        learning_rate: Step of an entry, in units of its typical size (norm / √d for a direction).
        seed: Random seed of a random beginning.
        progress: Whether to draw a bar.

    Raises:
        MelboError: There are no replies, or a prompt or reply is empty, blank or too long; the
            features are of another model; a number is out of range; or the loss is not finite.
    """
    _check(lm, replies, start, norm, steps, learning_rate)
    sphere = _Sphere.of(start, norm, seed)
    loss = _Loss(lm, replies, sphere)
    x = sphere.first.clone().requires_grad_()
    adam = torch.optim.Adam([x], lr=learning_rate)
    losses: list[float] = []
    with track(steps, "amplify", progress) as bar:
        for _ in range(steps):
            value, x.grad = loss.value_and_gradient(x)
            if not (math.isfinite(value) and torch.isfinite(x.grad).all()):
                raise MelboError(
                    f"the loss is not finite after {len(losses)} steps: lower norm or "
                    "learning_rate, or load the model in float32 or bfloat16"
                )
            adam.step()
            with torch.no_grad():
                x.copy_(sphere.projected(x))
            losses.append(value)
            bar.update()
    about = {
        "replies": len(replies),
        "features": len(start),
        "steps": steps,
        "learning_rate": learning_rate,
        "seed": seed,
    }
    return Amplified(sphere.feature(x.detach()).with_meta(amplified=about), tuple(losses))


def mean_adapter(features: AdapterSet) -> Tensor:
    """Flattened unit factor ``[D]`` of the adapter nearest to the mean of several.

    At every site it is the leading singular pair of Σ b̂âᵀ, which no sign of (a, b) changes.

    Args:
        features: The adapters, at least one.
    """
    widths = list(part_widths(features.sites))
    parts = [unit(part).double() for part in torch.split(features.V, widths, -1)]
    found: list[Tensor] = []
    for a, b in zip(parts[::2], parts[1::2], strict=True):
        (Qa, Ra), (Qb, Rb) = torch.linalg.qr(a.T), torch.linalg.qr(b.T)
        left, _, right = torch.linalg.svd(Rb @ Ra.T)
        found += [Qa @ right[0], Qb @ left[:, 0]]
    return unit(torch.cat(found)[None])[0].to(features.V)


@dataclass(frozen=True)
class _Sphere(Generic[Set]):
    """Features of one norm that act at the same layers, tokens and matrices.

    A feature is given as x, its entries in units of their typical size, so that one learning rate
    serves every width.

    Attributes:
        like: A feature of that norm.
        first: The x that the descent begins at.
        parts: Widths of the parts that keep equal norms: one for a direction, a and b of every
            site for an adapter.
        typical: Typical size of each entry of a unit feature.
    """

    like: Set
    first: Tensor
    parts: tuple[int, ...]
    typical: Tensor

    @classmethod
    def of(cls, start: Set, norm: float, seed: int) -> "_Sphere[Set]":
        """See `amplify`."""
        some = start if len(start) else start.random(1, torch.Generator().manual_seed(seed))
        v = mean_adapter(some) if isinstance(some, AdapterSet) else mean_direction(some.V)
        parts = part_widths(some.sites) if isinstance(some, AdapterSet) else (len(v),)
        typical = torch.cat([torch.full((w,), (w * len(parts)) ** -0.5) for w in parts]).to(v)
        one = some.replaced(v[None], mean_direction(some.U)[None], some.alpha[:1] * 0)
        return cls(replace(one, scale=norm), v / typical, parts, typical)

    def projected(self, x: Tensor) -> Tensor:
        """The nearest feature of the norm, as x."""
        parts = torch.split((x * self.typical)[None], list(self.parts), -1)
        return unit(torch.cat([unit(part) for part in parts], -1))[0] / self.typical

    def feature(self, x: Tensor) -> Set:
        """The feature as a set of one."""
        return self.like.replaced((x * self.typical)[None], self.like.U, self.like.alpha)


class _Loss:
    """The loss of replies, and its gradient.

    The template that prompts share is read once, and what lies before the feature runs once for all
    steps, where a trial on a few tokens gives the loss and gradient of plain passes.

    Args:
        lm: The model.
        replies: The replies.
        sphere: Features that are allowed.
    """

    def __init__(self, lm: LanguageModel, replies: Sequence[Pair], sphere: _Sphere[Any]) -> None:
        self._lm, self._replies, self._sphere = lm, replies, sphere
        like = sphere.like.edit()
        self._layer, self._parted = lm.layer(like.layer), like.prefix_safe
        self._before: dict[tuple[int, ...], BlocksBefore] = {}
        order = sorted(range(len(replies)), key=lambda i: (len(replies[i][0]), len(replies[i][1])))
        self._groups = [order]
        if not self._parted:  # all prompts of a batch have to end together
            self._groups = [list(g) for _, g in groupby(order, key=lambda i: len(replies[i][0]))]
        self._fast = self._agrees()

    def value_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
        """The loss of a feature, and its gradient."""
        total, gradient = 0.0, torch.zeros_like(x)

        def run(batch: list[int]) -> None:
            nonlocal total
            before = None
            if self._fast:
                before = self._before.setdefault(tuple(batch), BlocksBefore(self._lm, self._layer))
            value, part = self._read(x, [self._replies[i] for i in batch], self._fast, before)
            total += value / len(self._replies)
            gradient.add_(part, alpha=1 / len(self._replies))

        for _ in batches_that_fit(self._groups, _ROWS, run):
            pass
        return total, gradient

    def _read(
        self, x: Tensor, batch: Sequence[Pair], once: bool, before: BlocksBefore | None
    ) -> tuple[float, Tensor]:
        """Sum over replies of their mean loss, and its gradient."""
        point = x.detach().requires_grad_()
        lengths = torch.tensor([len(reply) for _, reply in batch])
        prompt = None if self._parted else len(batch[0][0])
        with torch.enable_grad():
            feature = self._sphere.feature(point)
            with edit(self._lm, feature.edit(), prompt=prompt):
                costs = reply_nll(self._lm, self._lm.model, batch, once, before)
            weights = (1 / lengths).repeat_interleave(lengths).to(costs)
            value = (costs * weights).sum()
            return value.item(), torch.autograd.grad(value, point)[0]

    def _agrees(self) -> bool:
        """Tell whether fast passes give the loss and gradient of plain ones, on a few tokens."""
        if not self._parted:
            return False
        few = [
            (prompt, reply[:_TRIED])
            for prompt, reply in sorted(self._replies, key=lambda pair: len(pair[0]))[:2]
        ]
        x, before = self._sphere.first, BlocksBefore(self._lm, self._layer)
        value, gradient = self._read(x, few, False, None)
        try:
            # the second time, what comes before is not run
            fast = [self._read(x, few, True, before) for _ in range(2)]
        except Exception:  # whatever it is, plain passes always work
            return False
        exact = self._lm.dtype in (torch.float32, torch.float64)
        tolerance = 1e-3 if exact else 5e-2
        return all(
            abs(v - value) <= tolerance * abs(value)
            and bool((g - gradient).norm() <= tolerance * gradient.norm())
            for v, g in fast
        )


def _check(
    lm: LanguageModel,
    replies: Sequence[Pair],
    start: FeatureSet,
    norm: float,
    steps: int,
    learning_rate: float,
) -> None:
    """Refuse what cannot be amplified.

    Raises:
        MelboError: See `amplify`.
    """
    start.check_model(lm)
    if not replies:
        raise MelboError("got no replies to amplify: expected a dozen that say the same thing")
    for i, (prompt, reply) in enumerate(replies):
        if not len(prompt) or not set(reply) - set(lm.eos):
            what = "reply" if len(prompt) else "prompt"
            raise MelboError(f"the {what} of pair {i} is blank: leave the pair out")
        if lm.max_length is not None and len(prompt) + len(reply) > lm.max_length:
            raise MelboError(
                f"prompt and reply of pair {i} come to {len(prompt) + len(reply)} tokens, "
                f"{lm.name} reads at most {lm.max_length}: leave the pair out"
            )
    for name, value in (("norm", norm), ("learning_rate", learning_rate)):
        if not 0 < value < math.inf:
            raise MelboError(f"{name} is {value}: expected a positive number")
    if steps < 1:
        raise MelboError(f"steps is {steps}: expected at least 1")
