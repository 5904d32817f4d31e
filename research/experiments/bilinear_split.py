"""Bilinear split: how far the weights of a gated MLP tell its response, and what breaks them."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from melbo.bilinear import Bilinear
from melbo.bilinear.gate import GatedMLP
from melbo.bilinear.gated import gated_mlp, gated_module
from melbo.bilinear.trace import PREDICTIONS, agreement, check_alphas, predictions
from melbo.errors import MelboError
from melbo.evaluation.plot import blank, png
from melbo.evaluation.tables import markdown
from melbo.maths.linalg import random_rows
from melbo.models.language_model import LanguageModel
from melbo.models.loading.load import load
from melbo.models.text.prompts import Prompts
from melbo.records import Row
from research.experiments.base import VERSION, Experiment

# number of hidden units that two lists of the largest are compared on
_TOP = 10
_KINDS = ("contrast", "random")
# predictions that are compared with the response behind the live norm
_BOTH = ("weights", "first order", "tangent gate", "self", "permuted")
_COLUMNS = {
    "norm": "norm: weights",
    **{f"gate, {name}": f"gate: {name}" for name in PREDICTIONS},
    **{f"both, {name}": f"both: {name}" for name in _BOTH},
}
# blocks of one line of the table by depth
_GROUP = 5

Ready = tuple[LanguageModel, dict[int, tuple[Tensor, Tensor]]]


@dataclass(frozen=True, kw_only=True)
class BilinearSplit(Experiment):
    """Contrast vectors, and random ones of their norms, added in front of every MLP's norm.

    The gate's non-linearity and the norm are taken out one by one: a frozen norm divides by what it
    divides by without steering.

    Attributes:
        model: A model with gated MLPs behind an RMS norm.
        positive: Texts to move towards.
        negative: Texts that are steered, one for each.
        alphas: Multiples of the vectors.
    """

    question: ClassVar[str] = "What do the weights of a gated MLP tell of a steering vector?"
    model: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    alphas: tuple[float, ...]

    def check(self) -> None:
        """Refuse texts that are no pairs, and multiples that are none.

        Raises:
            MelboError: There are more texts on one side.
        """
        if len(self.positive) != len(self.negative):
            raise MelboError(
                f"positive has {len(self.positive)} texts and negative {len(self.negative)}: "
                "expected one of each for a pair"
            )
        check_alphas(self.alphas)

    @property
    def cases(self) -> list[Row]:
        """A contrast vector and a random one for each pair."""
        key = {"version": VERSION, "settings": self.settings}
        return [
            {**key, "pair": i, "kind": kind} for i in range(len(self.positive)) for kind in _KINDS
        ]

    def prepare(self) -> Ready:
        """The model, and what enters the norm of each MLP on both texts of every pair."""
        lm = load(self.model)
        streams = {}
        for i, pair in enumerate(zip(self.positive, self.negative, strict=True)):
            ends = [_before_norms(lm, tokens) for tokens in Prompts.text(lm, pair).tokens]
            streams[i] = (ends[0], ends[1])
        return lm, streams

    def measure(self, ready: Ready, case: Row) -> Row:
        """Agreement of every prediction with the response, by block and multiple."""
        lm, streams = ready
        towards, away = streams[case["pair"]]
        vectors = towards - away
        if case["kind"] == "random":
            generator = torch.Generator().manual_seed(case["pair"])
            drawn = random_rows(len(vectors), lm.width, generator).to(vectors)
            vectors = drawn * vectors.norm(dim=1, keepdim=True)
        found = []
        for block in range(lm.depth):
            mlp = gated_mlp(gated_module(lm, block))
            norm = _norm(lm, block)
            found.append(list(self._measured(mlp, norm, away[block], vectors[block])))
        lengths = vectors.norm(dim=1) / away.norm(dim=1)
        return {
            "length": [_short(length) for length in lengths],
            **{name: [[m[name] for m in block] for block in found] for name in found[0][0]},
        }

    def _measured(self, mlp: GatedMLP, norm: Any, h: Tensor, d: Tensor) -> Iterator[Row]:
        """Agreement at one block, multiple by multiple.

        Args:
            mlp: The MLP.
            norm: The norm in front of it.
            h: Stream that enters the norm ``[d]``.
            d: Vector that is added to it ``[d]``.
        """
        weights = mlp.weights
        with torch.no_grad():
            x = norm(h[None])
            s = norm.weight * d / (h.square().mean() + norm.variance_epsilon).sqrt()
        order = torch.randperm(len(weights.R), generator=torch.Generator().manual_seed(0))
        permuted = Bilinear(weights.L, weights.R[order], weights.D)
        by_weights = weights.shares(s[None])[0].topk(_TOP).indices
        for alpha in self.alphas:
            change = alpha * s[None]
            with torch.no_grad():
                live = norm((h + alpha * d)[None])
            frozen, real = mlp(x + change) - mlp(x), mlp(live) - mlp(x)
            split = weights.split(x, change)
            guesses = {
                **predictions(mlp, x, change),
                "self": split.self,
                "permuted": permuted(x + change) - permuted(x),
            }
            units = (mlp.hidden(live) - mlp.hidden(x))[0] * (real @ weights.D)[0]
            own = guesses["weights"]
            yield {
                "cross": _short((split.cross * own).sum() / own.square().sum()),
                "units": len({*by_weights.tolist()} & {*units.topk(_TOP).indices.tolist()}),
                "neither": _pair(own, weights(x + change) - weights(x)),
                "norm": _pair(own, weights(live) - weights(x)),
                **{f"gate, {name}": _pair(guesses[name], frozen) for name in PREDICTIONS},
                **{f"both, {name}": _pair(guesses[name], real) for name in _BOTH},
            }

    def table(self, rows: Sequence[Row]) -> str:
        """Median cosine / relative error over pairs and blocks by α, and by depth near α = 1."""
        by_kind = {kind: [row for row in rows if row["kind"] == kind] for kind in _KINDS}
        by_alpha = [
            [kind, f"{alpha:g}", *_cells(own, k)]
            for kind, own in by_kind.items()
            for k, alpha in enumerate(self.alphas)
            if own
        ]
        own = by_kind["contrast"]
        at = min(range(len(self.alphas)), key=lambda k: abs(self.alphas[k] - 1))
        depth = len(own[0]["cross"]) if own else 0
        lines = []
        for first in range(0, depth, _GROUP):
            last = min(first + _GROUP, depth)
            length = median(each for row in own for each in row["length"][first:last])
            cells = _cells(own, at, range(first, last))
            lines.append([f"{first} – {last - 1}", f"{length:.2f}", *cells])
        title = f"Contrast vectors by depth, α = {self.alphas[at]:g}:"
        tables = [_by(by_alpha, "vectors", "α"), title, "", _by(lines, "blocks", "length")]
        worst = max(e for row in rows for block in row["neither"] for _, e in block)
        exact = f"With neither gate nor norm the weights are off by {worst:.0e} at most.\n"
        return "\n".join([*tables, exact])

    def picture(self, rows: Sequence[Row]) -> bytes:
        """Median relative error by α, for contrast vectors: what the norm and the gate break."""
        canvas, axes = blank()
        own = [row for row in rows if row["kind"] == "contrast"]
        for label, style, name in (
            ("weights, norm live", "C0--", "norm"),
            ("weights, gate live", "C1--", "gate, weights"),
            ("weights, both live", "C2-", "both, weights"),
            ("tangent gate, gate live", "C3--", "gate, tangent gate"),
            ("tangent gate, both live", "C4-", "both, tangent gate"),
            ("first order, both live", "C5-", "both, first order"),
        ):
            errors = [
                median(block[k][1] for row in own for block in row[name])
                for k in range(len(self.alphas))
            ]
            axes.plot(self.alphas, errors, style, marker="o", ms=3, lw=1.4, label=label)
        axes.set(xlabel="α", ylabel="median relative error of the response")
        axes.set(xscale="log", yscale="log")
        axes.set_xticks(self.alphas, [f"{alpha:g}" for alpha in self.alphas])
        axes.minorticks_off()
        return png(canvas)


def _norm(lm: LanguageModel, block: int) -> Any:
    """The norm in front of a block's MLP.

    Raises:
        MelboError: There is none of the name and form of Llama's.
    """
    norm = getattr(lm.blocks[block], "post_attention_layernorm", None)
    if not hasattr(norm, "variance_epsilon"):
        raise MelboError(
            f"block {block} of {lm.name} has no RMS norm post_attention_layernorm: "
            "take a model of Llama's form"
        )
    return norm


def _before_norms(lm: LanguageModel, tokens: Sequence[int]) -> Tensor:
    """Stream that enters the norm of each block's MLP at the last token, ``[depth, d]``."""
    found: dict[int, Tensor] = {}

    def noting(block: int) -> Any:
        def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            found[block] = args[0][0, -1].float()

        return note

    with ExitStack() as stack, torch.no_grad():
        for block in range(lm.depth):
            hook = _norm(lm, block).register_forward_pre_hook(noting(block))
            stack.callback(hook.remove)
        ids = torch.tensor([tuple(tokens)], device=lm.device)
        lm.model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return torch.stack([found[block] for block in range(lm.depth)])


def _short(value: Tensor | float) -> float:
    """A number to three digits."""
    return float(f"{float(value):.3g}")


def _pair(predicted: Tensor, real: Tensor) -> list[float]:
    """Cosine and relative error of a prediction ``[1, d]``."""
    return [_short(value) for value in agreement(predicted[0], real[0])]


def _by(lines: Sequence[Sequence[str]], *first: str) -> str:
    """Table whose first columns have these titles."""
    return markdown([*first, "cross", "units", *_COLUMNS.values()], lines)


def _cells(rows: Sequence[Row], at: int, blocks: Sequence[int] | None = None) -> list[str]:
    """Medians of the columns of `_by` at one multiple, over pairs and over some or all blocks."""

    def every(name: str) -> list[Any]:
        chosen = range(len(rows[0][name])) if blocks is None else blocks
        return [row[name][block][at] for row in rows for block in chosen]

    cells = []
    for name in _COLUMNS:
        cosines, errors = zip(*every(name), strict=True)
        cells.append(f"{median(cosines):.2f} / {median(errors):.2f}")
    return [f"{median(every('cross')):.2f}", f"{fmean(every('units')):.1f}", *cells]
