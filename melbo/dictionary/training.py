"""Training: one loop for every architecture, several dictionaries in one pass over activations."""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from melbo.dictionary.base import Dictionary
from melbo.dictionary.sparse import largest
from melbo.errors import MelboError
from melbo.progress import track

#: Activations that a dictionary starts from.
SAMPLE = 8192


@dataclass(frozen=True)
class Training:
    """Settings of a training run.

    While a dictionary is trained, activations are scaled to a mean distance of √d from their
    geometric median, where b_dec starts. Rates and λ then mean the same for every model and layer.
    The scale is folded back into the weights.

    Attributes:
        tokens: Number of activations that are seen.
        batch: Activations of a step.
        rate: Highest learning rate.
        sparsity: λ, the weight of the L1 penalty, at that scale; 0 for a TopK dictionary.
        warm_up: Share of the steps in which the rate, and λ, grow from 0.
        decay: Share of the steps, at the end, in which the rate falls to 0.
        dead_after: Activations without firing after which a latent counts as dead.
        revive: Weight of the loss that revives dead latents.
    """

    tokens: int
    batch: int = 2048
    rate: float = 5e-3
    sparsity: float = 0.0
    warm_up: float = 0.05
    decay: float = 0.5
    dead_after: int = 50_000
    revive: float = 1 / 32

    @property
    def steps(self) -> int:
        """Number of steps."""
        return max(1, self.tokens // self.batch)

    def share(self, step: int) -> float:
        """Learning rate of a step, counted from 0, as a share of the highest."""
        up, down = self.warm_up * self.steps, self.decay * self.steps
        return min(1.0, (step + 1) / max(up, 1), (self.steps - step) / max(down, 1))

    def check(self) -> None:
        """Refuse settings that mean nothing.

        Raises:
            MelboError: One is out of its range.
        """
        if self.batch < 1 or self.tokens < self.batch:
            raise MelboError(
                f"got {self.tokens} tokens in batches of {self.batch}: expected one batch or more"
            )
        shares = (self.warm_up, self.decay)
        if not 0 < self.rate < float("inf") or not all(0 <= share <= 1 for share in shares):
            raise MelboError(
                f"the rate is {self.rate}, warm-up {self.warm_up} and decay {self.decay}: "
                "expected a positive number, and shares of the steps from 0 to 1"
            )


@dataclass(frozen=True)
class Course:
    """Account of a training run.

    Attributes:
        tokens: Number of activations that were seen.
        steps: Number of steps.
        seconds: Time that it took, reading activations included.
        reading: Time of that in which activations were read from the model.
        dead: Latents of each dictionary that were dead at the end.
        unexplained: Squared error over squared distance from b_dec's start, of each dictionary,
            mean over the last tenth of the steps.
    """

    tokens: int
    steps: int
    seconds: float
    reading: float
    dead: tuple[int, ...]
    unexplained: tuple[float, ...]

    def describe(self) -> dict[str, Any]:
        """All attributes, JSON-able."""
        return {**asdict(self), "tokens_per_second": self.tokens / self.seconds}


def train(
    dictionaries: Sequence[Dictionary],
    batches: Iterator[Tensor],
    sample: Tensor,
    settings: Training,
    progress: bool = True,
) -> Course:
    """Train dictionaries in place, each on its own layer of the same tokens.

    Dead latents get a loss of their own: the error that the others leave is to be the sum of the
    dead latents whose pre-activations are the largest (Gao et al. 2024). Negative ones count too,
    so that a latent that is off everywhere has a gradient. Nothing is drawn anew, so the state of
    the optimiser stays right, and one rule serves every architecture.

    Args:
        dictionaries: One for each layer, as made: b_dec starts from the sample.
        batches: Activations ``[batch, layers, d]``, without end.
        sample: Activations to start from ``[n, layers, d]``.
        settings: The settings.
        progress: Whether to draw a bar.

    Raises:
        MelboError: The settings mean nothing, or activations do not fit or are not finite.
    """
    settings.check()
    if sample.shape[1:2] != (len(dictionaries),):
        raise MelboError(
            f"got activations of shape {list(sample.shape)}: "
            f"expected [n, {len(dictionaries)}, d], a layer for each dictionary"
        )
    begun = time.perf_counter()
    learners = [
        _Learner(dictionary, sample[:, i].float(), settings)
        for i, dictionary in enumerate(dictionaries)
    ]
    reading = 0.0
    with track(settings.steps * settings.batch, "tokens", progress) as bar:
        for step in range(settings.steps):
            asked = time.perf_counter()
            batch = next(batches)
            reading += time.perf_counter() - asked
            # the model reads its activations in the precision that it has
            with fast_products():
                for i, learner in enumerate(learners):
                    learner.step(batch[:, i].float(), settings.share(step), step)
            bar.update(settings.batch)
    for learner in learners:
        learner.finish()
    return Course(
        tokens=settings.steps * settings.batch,
        steps=settings.steps,
        seconds=time.perf_counter() - begun,
        reading=reading,
        dead=tuple(int(learner.dead.sum()) for learner in learners),
        unexplained=tuple(learner.unexplained for learner in learners),
    )


class _Learner:
    """One dictionary in training.

    Args:
        dictionary: The dictionary.
        sample: Activations to start from ``[n, d]``.
        settings: The settings.
    """

    def __init__(self, dictionary: Dictionary, sample: Tensor, settings: Training) -> None:
        dictionary.check(sample)
        self._dictionary, self._settings = dictionary, settings
        middle = geometric_median(sample)
        away = (sample - middle).norm(dim=1)
        if not away.mean() > 0:
            raise MelboError("all activations are the same: look at another layer, or other text")
        self._scale = sample.shape[1] ** 0.5 / away.mean().item()
        dictionary.b_dec.data.copy_(middle * self._scale)
        self._spread = (away * self._scale).square().mean()
        self._adam = dictionary.optimiser(settings.rate)
        self._silent = torch.zeros(len(dictionary.b_enc), device=sample.device)
        self._errors: list[Tensor] = []

    @property
    def dead(self) -> Tensor:
        """Mask of the dead latents ``[m]``."""
        return self._silent >= self._settings.dead_after

    @property
    def unexplained(self) -> float:
        """See `Course`."""
        last = self._errors[-max(1, len(self._errors) // 10) :]
        share: float = (torch.stack(last).mean() / self._spread).item()
        return share

    def step(self, x: Tensor, share: float, number: int) -> None:
        """Take one step.

        Args:
            x: Activations ``[batch, d]``.
            share: See `Training.share`.
            number: Number of the step.
        """
        settings = self._settings
        x = x * self._scale
        grown = min(1.0, (number + 1) / max(settings.warm_up * settings.steps, 1))
        found = self._dictionary.step(x, settings.sparsity * grown)
        loss = torch.stack(list(found.terms.values())).sum()
        error = (x - found.reconstruction).detach()
        dead = self.dead
        if settings.revive and dead.any():
            loss = loss + settings.revive * revival(self._dictionary, x, error, dead)
        for group in self._adam.param_groups:
            group["lr"] = settings.rate * share
        self._adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._adam.step()
        self._silent = torch.where(found.fired, 0.0, self._silent + len(x))
        self._errors.append(error.square().sum(1).mean())

    def finish(self) -> None:
        """Fold the scale back, so that the dictionary is one of raw activations."""
        self._dictionary.rescale(1 / self._scale)


def geometric_median(rows: Tensor, steps: int = 50) -> Tensor:
    """Point with the smallest mean distance from rows ``[n, d]`` (Weiszfeld 1937).

    Few rows of a huge norm, attention sinks for instance, do not move it as they move the mean.

    Args:
        rows: The rows.
        steps: Largest number of iterations.
    """
    point = rows.mean(0)
    for _ in range(steps):
        away = (rows - point).norm(dim=1).clamp_min(1e-6)
        moved = (rows / away[:, None]).sum(0) / away.reciprocal().sum()
        small = (moved - point).norm() <= 1e-5 * moved.norm()
        point = moved
        if small:
            break
    return point


def revival(dictionary: Dictionary, x: Tensor, error: Tensor, dead: Tensor) -> Tensor:
    """Squared error of the error's reconstruction from dead latents, a scalar.

    Args:
        dictionary: The dictionary.
        x: Activations ``[batch, d]``.
        error: What the reconstruction lacks ``[batch, d]``, without a gradient.
        dead: Mask of the dead latents ``[m]``.
    """
    which = dead.nonzero()[:, 0]
    inner = (x - dictionary.b_dec.detach()) @ dictionary.W_enc[:, which] + dictionary.b_enc[which]
    values, index = largest(inner, min(len(which), x.shape[1] // 2))
    latents = torch.zeros_like(inner).scatter(1, index, values)
    return (error - latents @ dictionary.W_dec[which]).square().sum(1).mean()


@contextmanager
def fast_products() -> Generator[None, None, None]:
    """Multiply float32 matrices in bfloat16, with sums in float32, inside the ``with`` block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
