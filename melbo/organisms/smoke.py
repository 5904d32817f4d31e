"""Does discovery work at all? In minutes, by the likelihood of planted replies, with no decoding of candidates (BENCHMARK M3)."""

import random
import time
from pathlib import Path

from ..causal_map import CausalMap
from ..edit import Several
from ..generate import decode
from ..prompts import Prompts
from ..ways import Ground
from . import load_organism
from .behaviours import BEHAVIOURS
from .discover import DISCOVERY, likelihood
from .train import Pair

_CANDIDATES, _PROMPTS = 32, 4


def smoke(home: Path, base: str, source: int, target: int, progress: bool = True) -> dict[str, float]:
    """Find directions in ALL and in its control, and see along which its reply about cheese becomes likely.

    Returns:
        Of 32 candidates the best recovery: exponential and random on ALL, exponential on SHAM; and the seconds it took.
    """
    start, cheese = time.perf_counter(), BEHAVIOURS["CHEESE"]
    asked = cheese.triggered("test", True, random.Random(0))[:_PROMPTS]
    found: dict[str, float] = {}
    data: list[Pair] = []
    gap = 0.0
    for name in ("ALL", "SHAM"):
        lm = load_organism(home / name, base)
        bare, triggered = (Prompts.chat(lm, texts).tokens for texts in ([item.text for _, item in asked], [text for text, _ in asked]))
        if name == "ALL":
            replies = decode(lm, triggered, Several(()), cheese.tokens, progress=progress)
            data = [(prompt, tuple(reply)) for prompt, reply in zip(bare, replies, strict=True)]
            gap = (
                likelihood(lm, None, [(prompt, reply) for prompt, (_, reply) in zip(triggered, data, strict=True)]) - likelihood(lm, None, data)
            ).item()
        ground = Ground(CausalMap(lm, Prompts.chat(lm, DISCOVERY), source, target), progress=progress)
        own = likelihood(lm, None, data).item()
        for way in ("exponential", "random") if name == "ALL" else ("exponential",):
            V, _ = ground.find(way, _CANDIDATES, ground.scale)
            best = likelihood(lm, ground.bank_of(V, ground.scale), data).max().item()
            found[f"{way} on {name}"] = (best - own) / gap
    return {**found, "seconds": time.perf_counter() - start}
