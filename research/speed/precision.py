"""What bfloat16 costs and brings on this machine: seconds in turn with float32, and whether it finds the same, on the bundled model.

python benchmarks/precision.py    prints the ratios and writes benchmarks/results/precision.json

What was learnt is judged in float32, whatever it was learnt in.
"""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from melbo import CausalMap, Exponential, FeatureSet, Prompts, calibrate, fit, generate, load
from melbo.evaluation.scores import nll
from melbo.maths.geometry import match
from melbo.maths.linalg import random_rows
from melbo.records import environment
from research.speed.measure import in_turn

LAYERS, NUM, TOKENS, REPEATS, SEEDS = (8, 20), 64, 24, 3, 2
TYPES = ("float32", "bfloat16")
PROMPT = "Tell me how to bake a cake"


def main() -> None:
    """Times, then what is found."""
    maps = {}
    for name in TYPES:
        lm = load("smollm2", name)
        maps[name] = CausalMap(lm, Prompts.chat(lm, [PROMPT]), *LAYERS)
    scales = {name: calibrate(maps[name], progress=False).scale for name in TYPES}
    scale, truth = scales["float32"], maps["float32"]

    def learnt(name: str, seed: int) -> FeatureSet:
        return fit(maps[name], Exponential(NUM, scale), seed=seed, progress=False).features

    sets = {name: [learnt(name, seed) for seed in range(SEEDS)] for name in TYPES}
    first = sets["float32"][0]

    def sweep(name: str) -> Callable[[], Any]:
        method = Exponential(NUM, scale)
        state = method.init(maps[name], torch.Generator().manual_seed(0))
        return lambda: method.step(maps[name], state)

    def speak(name: str) -> Callable[[], Any]:
        return lambda: generate(
            maps[name].lm, maps[name].prompts, first, max_new_tokens=TOKENS, progress=False
        )

    tables = {name: list(speak(name)()) for name in TYPES}

    def judge(name: str) -> Callable[[], Any]:
        return lambda: nll(maps[name].lm, maps[name].prompts, tables["float32"], progress=False)

    times = {}
    for what, job in {"sweep": sweep, "generation": speak, "fluency": judge}.items():
        seconds = in_turn({name: job(name) for name in TYPES}, REPEATS, what)
        times[what] = {
            "seconds": seconds,
            "ratio": statistics.median(seconds["float32"]) / statistics.median(seconds["bfloat16"]),
        }
        print(
            f"{what}: {statistics.median(seconds['float32']):.2f} s in float32, bfloat16 is {times[what]['ratio']:.2f} times as fast"
        )

    def effect(V: torch.Tensor) -> float:
        return truth.value(scale * V.to(truth.device, truth.dtype)).norm(dim=-1).mean().item()

    def found_again(features: FeatureSet) -> float:
        return match(first.V, features.V).cosine.mean().item()

    random = random_rows(NUM, first.V.shape[1], torch.Generator().manual_seed(SEEDS))
    found = {
        "scale": scales,
        "effect": {
            **{name: [effect(features.V) for features in sets[name]] for name in TYPES},
            "random": effect(random),
        },
        "cosine of the most alike": {
            "the same seed in bfloat16": found_again(sets["bfloat16"][0]),
            "another seed in float32": found_again(sets["float32"][1]),
            "random": match(first.V, random).cosine.mean().item(),
        },
        "same replies of the same features": sum(
            a.text == b.text for a, b in zip(*tables.values(), strict=True)
        )
        / len(tables["float32"]),
    }
    print(json.dumps(found, indent=1))
    result = {
        "environment": environment(),
        "layers": LAYERS,
        "factors": NUM,
        "tokens": TOKENS,
        "times": times,
        "found": found,
    }
    (Path(__file__).parent / "results" / "precision.json").write_text(
        json.dumps(result, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
