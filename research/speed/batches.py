"""Which rows decode together, and what is read once: seconds of the same replies in four ways, on the bundled model.

python benchmarks/batches.py    prints the ratios and writes benchmarks/results/batches.json

A few vectors on many prompts are many rows, of which few have their prompt in common. Rows of a prompt by themselves read it once; side by side with
others they fill the pass in which the weights are read for every token.
"""

import json
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import melbo
from melbo import CausalMap, Completions, FeatureSet, LanguageModel, Prompts, load, shared_prompt
from melbo.discovery.recipes import FeatureSearch
from melbo.records import environment
from research.organisms import items
from research.speed.measure import in_turn

CASES = {
    "1 vector, 32 prompts": (1, 32),
    "7 vectors, 16 prompts": (7, 16),
    "31 vectors, 4 prompts": (31, 4),
    "63 vectors, 2 prompts": (63, 2),
}
LAYERS, SCALE, TOKENS, REPEATS = (8, 20), 16.0, 24, 2
GENERATE = sys.modules["melbo.features.generate"]  # the name in the package is the function's
#: What `melbo.generate` and `melbo.models.shared_prefix` are told in each way.
RECIPES = {
    "as it is": (GENERATE._PASS, shared_prompt._LEAST),
    "each prompt by itself": (0, shared_prompt._LEAST),
    "all side by side": (math.inf, shared_prompt._LEAST),
    "as it is, but what all prompts begin with is read with each": (GENERATE._PASS, math.inf),
}


def replies(
    lm: LanguageModel, prompts: Prompts, features: FeatureSet, recipe: str
) -> Callable[[], Completions]:
    """A job for the clock."""

    def run() -> Completions:
        GENERATE._PASS, shared_prompt._LEAST = RECIPES[recipe]
        return melbo.generate(
            lm, prompts, features, max_new_tokens=TOKENS, unsteered=False, progress=False
        )

    return run


def main() -> None:
    """Measure in turn, case after case."""
    lm = load("smollm2")
    draw = torch.Generator().manual_seed(0)
    ordinary = [item.text for item in items("ordinary", "test")]
    search = FeatureSearch(
        CausalMap(lm, Prompts.chat(lm, ordinary[-1:]), *LAYERS), SCALE, progress=False
    )
    found = {}
    for case, (vectors, num) in CASES.items():
        features = search.feature_set(
            torch.nn.functional.normalize(torch.randn(vectors, lm.width, generator=draw), dim=-1),
            SCALE,
        )
        prompts = Prompts.chat(lm, ordinary[:num])
        times = in_turn(
            {recipe: replies(lm, prompts, features, recipe) for recipe in RECIPES}, REPEATS, case
        )
        best = statistics.median(times["as it is"])
        found[case] = {
            "seconds": times,
            "ratio": {
                recipe: statistics.median(seconds) / best for recipe, seconds in times.items()
            },
        }
        print(
            f"{case}: {best:.1f} s; {'; '.join(f'{recipe} × {ratio:.2f}' for recipe, ratio in found[case]['ratio'].items() if recipe != 'as it is')}"
        )
    result = {"environment": environment(), "layers": LAYERS, "tokens": TOKENS, "cases": found}
    (Path(__file__).parent / "results" / "batches.json").write_text(
        json.dumps(result, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
