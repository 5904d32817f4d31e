"""Bilinear trace: a contrast vector followed term by term through a bilinear transformer."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import ClassVar

import torch
from torch import Tensor

from melbo.bilinear.gate import GatedMLP
from melbo.bilinear.trace import check_alphas, respond
from melbo.errors import MelboError
from melbo.evaluation.plot import blank, png
from melbo.evaluation.tables import cell, markdown
from melbo.maths.linalg import random_rows
from melbo.records import Row
from research.bilinear.model import Steering
from research.bilinear.text import ACTS
from research.bilinear.train import Trained, train
from research.experiments.base import VERSION, Experiment, Layer

# random vectors of the contrast vector's norm
_CONTROLS = 16
# number of hidden units that two lists of the largest are compared on
_TOP = 10
_LEADS = ("lead", "random lead")


@dataclass(frozen=True, kw_only=True)
class BilinearTrace(Experiment):
    """A transformer for each seed, trained on text that comes along with Python.

    Attributes:
        positive: Text to move towards.
        negative: Text that is steered, of as many tokens.
        layer: Block whose input is changed.
        alphas: Multiples of the contrast vector.
        steps: Number of training steps.
        seeds: Number of transformers.
    """

    question: ClassVar[str] = "How does a contrast vector act, layer by layer, in a bilinear model?"
    varied: ClassVar[tuple[str, ...]] = ("seeds",)
    positive: str
    negative: str
    layer: Layer
    alphas: tuple[float, ...]
    steps: int
    seeds: int

    def check(self) -> None:
        """Refuse texts that do not end in a feeling that the training text knows.

        Raises:
            MelboError: One does not, or both are followed by the same.
        """
        ends = [text.split()[-1] for text in (self.positive, self.negative)]
        if not all(end in ACTS for end in ends) or ACTS[ends[0]] == ACTS[ends[1]]:
            raise MelboError(
                f"the texts end in {ends[0]!r} and {ends[1]!r}: expected two of "
                f"{', '.join(ACTS)} that are followed by different words"
            )
        check_alphas(self.alphas)

    @property
    def cases(self) -> list[Row]:
        """One case a seed."""
        key = {"version": VERSION, "settings": self.settings}
        return [{**key, "seed": seed} for seed in range(self.seeds)]

    def prepare(self) -> None:
        """Make nothing: each case trains a transformer of its own."""

    def measure(self, ready: None, case: Row) -> Row:
        """The terms of every MLP's response, and what steering does to the next word."""
        trained = train(self.steps, case["seed"], progress=False)
        model, ids = trained.model, trained.ids(self.negative)
        ends = [
            model.stream(trained.ids(text), self.layer)[0, -1]
            for text in (self.positive, self.negative)
        ]
        vector = ends[0] - ends[1]
        multiples = torch.tensor([0.0, *self.alphas])[:, None] * vector
        steering = Steering(self.layer, multiples, [])
        logits = model(ids.expand(len(multiples), -1), steering)[:, -1]
        blocks = []
        for block, read in enumerate(steering.read):
            if block < self.layer:
                continue
            mlp, changes = GatedMLP(model.layer(block)), read[1:] - read[0]
            responses = respond(mlp, read[0], changes, self.alphas)
            blocks.append(
                {
                    "block": block,
                    "responses": [
                        {name: value for name, value in r.describe().items() if name != "agreement"}
                        | {"error": r.agreement["weights"].error}
                        for r in responses
                    ],
                    "shared": _shared(mlp, read[0], changes),
                }
            )
        random = self._random(trained, ids, vector.norm())
        return {
            "loss": trained.loss,
            "floor": trained.floor,
            "seconds": trained.seconds,
            "norm": (vector.norm() / ends[1].norm()).item(),
            "blocks": blocks,
            "lead": self._leads(trained, logits),
            "random lead": random,
            "positive lead": self._leads(trained, model(trained.ids(self.positive))[:, -1])[0],
        }

    def _random(self, trained: Trained, ids: Tensor, norm: Tensor) -> list[float]:
        """Median lead under random vectors of the contrast vector's norm, by multiple."""
        generator = torch.Generator().manual_seed(0)
        vectors = norm * random_rows(_CONTROLS, trained.model.shape.width, generator)
        medians = []
        for alpha in (0.0, *self.alphas):
            steering = Steering(self.layer, alpha * vectors, [])
            logits = trained.model(ids.expand(_CONTROLS, -1), steering)[:, -1]
            medians.append(median(self._leads(trained, logits)))
        return medians

    def _leads(self, trained: Trained, logits: Tensor) -> list[float]:
        """Logit of the word that follows the positive text, less that of the negative one."""
        a, b = (
            trained.ids(f" {ACTS[text.split()[-1]]}")[0, 0].item()
            for text in (self.positive, self.negative)
        )
        leads: list[float] = (logits[:, int(a)] - logits[:, int(b)]).tolist()
        return leads

    def table(self, rows: Sequence[Row]) -> str:
        """Share of the cross term by block and α, and the lead of the word steered to."""
        blocks = range(self.layer, self.layer + (len(rows[0]["blocks"]) if rows else 0))
        lines = []
        for i, block in enumerate(blocks):
            own = [row["blocks"][i] for row in rows]
            by_alpha = [[o["responses"][k] for o in own] for k in range(len(self.alphas))]
            one = by_alpha[min(range(len(self.alphas)), key=lambda k: abs(self.alphas[k] - 1))]
            lines.append(
                [
                    str(block),
                    *(cell([r["cross"] for r in responses]) for responses in by_alpha),
                    cell([r["size"] for r in one]),
                    cell([float(r["carriers"]) for r in one]),
                    *(cell([float(o["shared"][k]) for o in own]) for k in (0, -1)),
                    cell([by_alpha[-1][n]["bent"] for n in range(len(own))]),
                ]
            )
        head = [
            "block",
            *(f"cross, α = {alpha:g}" for alpha in self.alphas),
            "size",
            "units for half",
            *(f"of {_TOP} units, α = {self.alphas[k]:g}" for k in (0, -1)),
            f"bent, α = {self.alphas[-1]:g}",
        ]
        worst = max(r["error"] for row in rows for b in row["blocks"] for r in b["responses"])
        leads = [
            [f"{alpha:g}", *(cell([row[name][k] for row in rows]) for name in _LEADS)]
            for k, alpha in enumerate((0.0, *self.alphas))
        ]
        words = [ACTS[text.split()[-1]] for text in (self.positive, self.negative)]
        note = (
            f"The terms sum to the forward pass within {worst:.0e}. Loss on held-out text "
            f"{cell([row['loss'] for row in rows])} nats a token, without context "
            f"{cell([row['floor'] for row in rows])}; "
            f"{max(row['seconds'] for row in rows) / 60:.1f} minutes of training at most. "
            f"After the positive text the lead is {cell([row['positive lead'] for row in rows])}."
        )
        heads = [
            "α",
            f"logit({words[0]}) − logit({words[1]})",
            f"median of {_CONTROLS} random vectors",
        ]
        return f"{markdown(head, lines)}\n{markdown(heads, leads)}\n{note}\n"

    def picture(self, rows: Sequence[Row]) -> bytes:
        """Share of the cross term by α: a line for each block, a thin one for each seed."""
        canvas, axes = blank()
        for i, first in enumerate(rows[0]["blocks"]):
            shares = [[r["cross"] for r in row["blocks"][i]["responses"]] for row in rows]
            for share in shares:
                axes.plot(self.alphas, share, color=f"C{i}", lw=0.6, alpha=0.5)
            means = [fmean(column) for column in zip(*shares, strict=True)]
            label = f"block {first['block']}"
            axes.plot(self.alphas, means, "o-", color=f"C{i}", ms=3, lw=1.8, label=label)
        axes.axhline(0, color="grey", lw=0.8)
        axes.set(xlabel="α", ylabel="share of the cross term in the response", xscale="log")
        axes.set_xticks(self.alphas, [f"{alpha:g}" for alpha in self.alphas])
        axes.minorticks_off()
        return png(canvas)


def _shared(mlp: GatedMLP, x: Tensor, changes: Tensor) -> list[int]:
    """Number of units among the largest both in the response and in y(s), by multiple."""
    real = mlp.hidden(x + changes) - mlp.hidden(x[None])
    shares = real * (real @ mlp.weights.D.T @ mlp.weights.D)
    alone = mlp.weights.shares(changes)
    pairs = zip(shares.topk(_TOP).indices.tolist(), alone.topk(_TOP).indices.tolist(), strict=True)
    return [len({*a} & {*b}) for a, b in pairs]
