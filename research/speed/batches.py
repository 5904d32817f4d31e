"""Rows that decode together, and what is read once: seconds of the same replies, batched variously.

``python -m research.speed.batches`` prints the ratios and writes
``research/results/speed/batches.json``; no full run is committed. A few vectors on many prompts are
many rows, few of which have their prompt in common. Rows of one prompt by themselves read it once;
side by side with others they fill the pass in which the weights are read for every token.
"""

import math
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch

from melbo import CausalMap, FeatureSet, LanguageModel, Prompts, load
from melbo.discovery.recipes import FeatureSearch
from melbo.models.decoding.decode import Batching, decode
from melbo.records import environment
from research.organisms import items
from research.speed.measure import in_turn
from research.speed.results import save

#: Number of vectors and of prompts of each case.
CASES = {
    "1 vector, 32 prompts": (1, 32),
    "7 vectors, 16 prompts": (7, 16),
    "31 vectors, 4 prompts": (31, 4),
    "63 vectors, 2 prompts": (63, 2),
}
LAYERS, SCALE, TOKENS, REPEATS = (8, 20), 16.0, 24, 2
USUAL = "as it is"
BATCHINGS = {
    USUAL: Batching(),
    "each prompt by itself": Batching(pass_rows=0),
    "all side by side": Batching(pass_rows=math.inf),
    "as it is, but what all prompts begin with is read with each": Batching(
        least_prefix=sys.maxsize
    ),
}


def replies(
    lm: LanguageModel, prompts: Prompts, features: FeatureSet, batching: Batching
) -> Callable[[], Any]:
    """A job for the clock: replies of all features to all prompts.

    Args:
        lm: The model.
        prompts: The prompts.
        features: The features.
        batching: How rows share passes.
    """
    m = len(features)
    rows = [tokens for tokens in prompts.tokens for _ in range(m)]
    which = torch.arange(m).repeat(len(prompts))
    alike = which.tolist()
    edit = features.edit(which)
    return lambda: decode(lm, rows, edit, TOKENS, batching, progress=False, alike=alike)


def main() -> None:
    """Measure in turn, case after case."""
    lm = load("smollm2")
    draw = torch.Generator().manual_seed(0)
    ordinary = [item.text for item in items("ordinary", "test")]
    cmap = CausalMap(lm, Prompts.chat(lm, ordinary[-1:]), *LAYERS)
    search = FeatureSearch(cmap, SCALE, progress=False)
    cases = {}
    for case, (vectors, num) in CASES.items():
        V = torch.randn(vectors, lm.width, generator=draw)
        features = search.feature_set(torch.nn.functional.normalize(V, dim=-1), SCALE)
        prompts = Prompts.chat(lm, ordinary[:num])
        jobs = {name: replies(lm, prompts, features, how) for name, how in BATCHINGS.items()}
        times = in_turn(jobs, REPEATS, case)
        best = statistics.median(times[USUAL])
        ratio = {name: statistics.median(seconds) / best for name, seconds in times.items()}
        cases[case] = {"seconds": times, "ratio": ratio}
        others = "; ".join(f"{name} × {r:.2f}" for name, r in ratio.items() if name != USUAL)
        print(f"{case}: {best:.1f} s; {others}")
    about = {"environment": environment(), "layers": LAYERS, "tokens": TOKENS}
    save("batches", {**about, "cases": cases})


if __name__ == "__main__":
    main()
