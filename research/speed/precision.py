"""Costs and gains of bfloat16 on this machine, beside float32, on the bundled model.

``python -m research.speed.precision`` prints the ratios and writes
``research/results/speed/precision.json``: seconds in turn, then whether both find the same. What
was learnt is judged in float32, whatever it was learnt in.
"""

import json
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from melbo import CausalMap, Exponential, FeatureSet, Prompts, calibrate, fit, generate, load
from melbo.evaluation.scores import nll
from melbo.features.generate import Completion
from melbo.maths.geometry import match
from melbo.maths.linalg import random_rows
from melbo.records import environment
from research.speed.measure import Jobs, in_turn
from research.speed.results import save

LAYERS, NUM, TOKENS, REPEATS, SEEDS = (8, 20), 64, 24, 3, 2
TYPES = ("float32", "bfloat16")
PROMPT = "Tell me how to bake a cake"


class Comparison:
    """The model in both precisions, and the features that a fit finds in each.

    Attributes:
        maps: The map by precision.
        scales: Calibrated R by precision; that of float32 is used in both.
        sets: Features of each seed by precision.
        replies: Replies of the first float32 features by precision.
    """

    def __init__(self) -> None:
        models = {name: load("smollm2", name) for name in TYPES}
        self.maps = {
            name: CausalMap(lm, Prompts.chat(lm, [PROMPT]), *LAYERS) for name, lm in models.items()
        }
        self.scales = {name: calibrate(self.maps[name], progress=False).scale for name in TYPES}
        self.method = Exponential(NUM, self.scales["float32"])
        self.sets = {name: [self._learnt(name, seed) for seed in range(SEEDS)] for name in TYPES}
        self.replies = {name: self._speak(name) for name in TYPES}

    def _learnt(self, name: str, seed: int) -> FeatureSet:
        return fit(self.maps[name], self.method, seed=seed, progress=False).features

    def _speak(self, name: str) -> list[Completion]:
        cmap, first = self.maps[name], self.sets["float32"][0]
        table = generate(cmap.lm, cmap.prompts, first, max_new_tokens=TOKENS, progress=False)
        return list(table)

    def _sweep(self, name: str) -> Callable[[], Any]:
        state = self.method.init(self.maps[name], torch.Generator().manual_seed(0))
        return lambda: self.method.step(self.maps[name], state)

    def _judge(self, name: str) -> list[float]:
        cmap = self.maps[name]
        return nll(cmap.lm, cmap.prompts, self.replies["float32"], progress=False)

    def times(self) -> dict[str, dict[str, Any]]:
        """Seconds of a sweep, of generation and of judging replies, and their ratios."""
        jobs: dict[str, Jobs] = {
            "sweep": {name: self._sweep(name) for name in TYPES},
            "generation": {name: partial(self._speak, name) for name in TYPES},
            "fluency": {name: partial(self._judge, name) for name in TYPES},
        }
        measured = {}
        for what, of_types in jobs.items():
            seconds = in_turn(of_types, REPEATS, what)
            full, half = (statistics.median(seconds[name]) for name in TYPES)
            measured[what] = {"seconds": seconds, "ratio": full / half}
            print(f"{what}: {full:.2f} s in float32, bfloat16 is {full / half:.2f} times as fast")
        return measured

    def agreement(self) -> dict[str, Any]:
        """Effects of the directions, and how much directions and replies agree between formats."""
        truth, scale, first = self.maps["float32"], self.scales["float32"], self.sets["float32"][0]

        def effect(V: Tensor) -> float:
            D = truth.value(scale * V.to(truth.device, truth.dtype))
            return float(D.norm(dim=-1).mean())

        def cosine(V: Tensor) -> float:
            return float(match(first.V, V).cosine.mean())

        random = random_rows(NUM, first.V.shape[1], torch.Generator().manual_seed(SEEDS))
        same = sum(a.text == b.text for a, b in zip(*self.replies.values(), strict=True))
        effects = {name: [effect(features.V) for features in self.sets[name]] for name in TYPES}
        return {
            "scale": self.scales,
            "effect": {**effects, "random": effect(random)},
            "cosine of the most alike": {
                "the same seed in bfloat16": cosine(self.sets["bfloat16"][0].V),
                "another seed in float32": cosine(self.sets["float32"][1].V),
                "random": cosine(random),
            },
            "same replies of the same features": same / len(self.replies["float32"]),
        }


def main() -> None:
    """Measure times, then agreement."""
    comparison = Comparison()
    times, agreement = comparison.times(), comparison.agreement()
    print(json.dumps(agreement, indent=1))
    about = {"environment": environment(), "layers": LAYERS, "factors": NUM, "tokens": TOKENS}
    save("precision", {**about, "times": times, "found": agreement})


if __name__ == "__main__":
    main()
