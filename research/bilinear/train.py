"""Training of the small transformer, in a few minutes on one core."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from melbo.progress import track
from research.bilinear.model import BilinearTransformer, Shape
from research.bilinear.text import corpus, tokenizer

_WARM_UP = 50
_ROWS_HELD_OUT = 64


@dataclass(frozen=True)
class Trained:
    """A trained transformer.

    Attributes:
        model: The transformer.
        tokenizer: Its tokenizer.
        loss: Loss on held-out text, in nats a token.
        floor: Entropy of the tokens there without any context, in nats.
        seconds: Duration of the training.
    """

    model: BilinearTransformer
    tokenizer: Any
    loss: float
    floor: float
    seconds: float

    def ids(self, text: str) -> Tensor:
        """Token ids of a text ``[1, T]``."""
        return torch.tensor([self.tokenizer.encode(text).ids])


def train(
    steps: int, seed: int = 0, vocabulary: int = 1024, rows: int = 32, progress: bool = True
) -> Trained:
    """Train a transformer on the text of `research.bilinear.text`.

    The last twentieth of the text is held out.

    Args:
        steps: Number of steps.
        seed: Seed of the weights and of the batches.
        vocabulary: Number of tokens.
        rows: Number of pieces of text in a batch.
        progress: Whether to draw a bar.
    """
    text = corpus()
    words = tokenizer(text, vocabulary)
    ids = torch.tensor(words.encode(text).ids)
    cut = len(ids) * 19 // 20
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = BilinearTransformer(Shape(words.get_vocab_size()))
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / _WARM_UP, 1 - step / (steps + 1))
    )
    start = time.perf_counter()
    with track(steps, "steps", progress) as bar:
        for _ in range(steps):
            loss = _loss(model, _batch(ids[:cut], model.shape.length, rows, generator))
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            bar.update()
    seconds = time.perf_counter() - start
    model.requires_grad_(False)
    held_out = _batch(ids[cut:], model.shape.length, _ROWS_HELD_OUT, generator)
    counts = torch.bincount(ids[cut:], minlength=words.get_vocab_size()).double() / (len(ids) - cut)
    floor = torch.special.entr(counts).sum().item()
    return Trained(model, words, _loss(model, held_out).item(), floor, seconds)


def _loss(model: BilinearTransformer, batch: Tensor) -> Tensor:
    """Mean loss of the next token, in nats."""
    logits = model(batch[:, :-1])
    return cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def _batch(ids: Tensor, length: int, rows: int, generator: torch.Generator) -> Tensor:
    """Pieces of a text ``[rows, length + 1]``."""
    starts = torch.randint(len(ids) - length, (rows,), generator=generator)
    return torch.stack([ids[start : start + length + 1] for start in starts])
