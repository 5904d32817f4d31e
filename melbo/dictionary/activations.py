"""Activations of a model over text, as shuffled batches: what dictionaries are trained on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from melbo.errors import MelboError
from melbo.models.language_model import LanguageModel
from melbo.models.read_stream import read_stream
from melbo.models.text.prompts import pad_rows
from melbo.progress import track

#: Tokens of one pass of the model.
PASS = 2048


@dataclass(frozen=True)
class Contexts:
    """Texts cut into contexts, each of which a model reads by itself.

    The last context of a text may be shorter than the others, and is padded on the right.

    Attributes:
        ids: Token ids ``[n, T]``.
        mask: True on real tokens ``[n, T]``.
        texts: Number of the text that each context is of ``[n]``.
    """

    ids: Tensor
    mask: Tensor
    texts: Tensor

    @classmethod
    def of(cls, lm: LanguageModel, texts: Sequence[str], length: int = 256) -> "Contexts":
        """Tokenise texts and cut them.

        A rest of one token is left out, because nothing is read of the first token of a context.

        Args:
            lm: The model.
            texts: The texts.
            length: Length of a context in tokens.

        Raises:
            MelboError: There is no text, one of them is blank, all are too short, or the length is
                less than 2 or more than the model reads.
        """
        most = lm.max_length or length
        if not 2 <= length <= most:
            raise MelboError(
                f"the length of contexts is {length} tokens: expected 2 to {most}, "
                f"as {lm.name} reads at most that many"
            )
        if not texts:
            raise MelboError("got no text: give one or more")
        rows: list[tuple[int, ...]] = []
        numbers: list[int] = []
        for number, text in enumerate(texts):
            if not text.strip():
                raise MelboError(f"text {number + 1} of {len(texts)} is empty: leave it out")
            ids = lm.tokenizer(text, verbose=False)["input_ids"]
            cut = [tuple(ids[i : i + length]) for i in range(0, len(ids), length)]
            cut = [row for row in cut if len(row) > 1]
            rows += cut
            numbers += [number] * len(cut)
        if not rows:
            raise MelboError(
                f"no text has more than one token (the first is {texts[0][:40]!r}): give more"
            )
        ids, mask = pad_rows(rows, lm.pad, side="right")
        return cls(ids, mask, torch.tensor(numbers))

    def __len__(self) -> int:
        """Number of contexts."""
        return len(self.ids)

    @property
    def rows(self) -> int:
        """Number of tokens that activations are read of: all but the first of each context."""
        return int(self.mask[:, 1:].sum())

    def take(self, which: Tensor) -> "Contexts":
        """Some of the contexts."""
        return Contexts(self.ids[which], self.mask[which], self.texts[which])

    def passes(self, tokens: int = PASS) -> Iterator["Contexts"]:
        """The contexts in their order, as many at a time as fit into a number of tokens."""
        step = max(1, tokens // self.ids.shape[1])
        for i in range(0, len(self), step):
            yield self.take(torch.arange(i, min(i + step, len(self))))


def activations(lm: LanguageModel, contexts: Contexts, layers: Sequence[int]) -> Tensor:
    """Stream of all tokens but the first of each context, at each layer ``[tokens, layers, d]``.

    The first token is an attention sink: its stream is many times as large as that of others, and
    the same whatever the text.

    Args:
        lm: The model.
        contexts: The contexts, read in one pass.
        layers: Indices into ``hidden_states``.

    Raises:
        MelboError: See `read_stream`.
    """
    streams = read_stream(lm, contexts.ids, contexts.mask, layers)
    real = contexts.mask.clone()
    real[:, 0] = False
    return torch.stack([stream[real.to(stream.device)].to(lm.device) for stream in streams], 1)


class ActivationStream:
    """Batches of activations, in random order, as many as wanted.

    Contexts are read in random order, epoch after epoch, into a buffer whose rows are shuffled.
    Half of the buffer is used before it is filled up again. Where it holds all activations, the
    model reads the text once.

    Args:
        lm: The model.
        contexts: The contexts.
        layers: Indices into ``hidden_states``, each of them read in the same pass.
        buffer: Number of tokens that are held.
        seed: Random seed of the order.
        progress: Whether to draw a bar whenever the buffer is filled.

    Raises:
        MelboError: There is no such layer, or no room in the buffer.
    """

    def __init__(
        self,
        lm: LanguageModel,
        contexts: Contexts,
        layers: Sequence[int],
        buffer: int = 2**19,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        if not layers or buffer < 2:
            raise MelboError(
                f"got {len(layers)} layers and a buffer of {buffer} tokens: "
                "expected one layer or more, and 2 tokens or more"
            )
        self._lm, self._contexts = lm, contexts
        self._layers = [lm.layer(layer) for layer in layers]
        self._buffer, self._progress = buffer, progress
        self._generator = torch.Generator().manual_seed(seed)
        self._held: Tensor | None = None
        self._reading = self._read()

    def batches(self, size: int) -> Iterator[Tensor]:
        """Batches ``[size, layers, d]`` without end, in the model's precision.

        Args:
            size: Number of activations of a batch.

        Raises:
            MelboError: The buffer holds fewer than two batches.
        """
        whole = self._contexts.rows <= self._buffer
        if size > min(self._contexts.rows, self._buffer // 2):
            raise MelboError(
                f"a batch has {size} activations, the text {self._contexts.rows} and half of the "
                f"buffer {self._buffer // 2}: give more text, or a smaller batch"
            )
        while True:
            held = self._filled()
            order = torch.randperm(len(held), generator=self._generator).to(held.device)
            used = len(held) if whole else len(held) // 2
            done = used // size * size
            for i in range(0, done, size):
                yield held[order[i : i + size]]
            if not whole:
                self._held = held[order[done:]]

    def sample(self, size: int) -> Tensor:
        """Activations from the beginning ``[at most size, layers, d]``, before any batch.

        Args:
            size: Number of activations.
        """
        held = self._filled()
        order = torch.randperm(len(held), generator=self._generator).to(held.device)
        return held[order[:size]]

    def _filled(self) -> Tensor:
        """The buffer, filled up."""
        blocks = [] if self._held is None else [self._held]
        have, goal = sum(map(len, blocks)), min(self._buffer, self._contexts.rows)
        if have >= goal and len(blocks) == 1:
            return blocks[0]
        with track(goal - have, "activations", self._progress) as bar:
            while have < goal:
                blocks.append(next(self._reading))
                have += len(blocks[-1])
                bar.update(len(blocks[-1]))
        self._held = torch.cat(blocks)
        return self._held

    def _read(self) -> Iterator[Tensor]:
        """Activations of one pass after the other, contexts in a new order in each epoch."""
        for _ in count():
            order = torch.randperm(len(self._contexts), generator=self._generator)
            for few in self._contexts.take(order).passes():
                yield activations(self._lm, few, self._layers)
