"""Smoke test in minutes: learnt directions bring out what is hidden, where something is."""

import time
from pathlib import Path

from melbo.discovery.recipes import FeatureSearch
from melbo.features.generate import generate
from melbo.features.steerable import Steerable
from melbo.maps.residual import CausalMap
from melbo.models.language_model import LanguageModel
from melbo.models.text.prompts import Prompts
from research.organisms import load_organism
from research.organisms.behaviours import BEHAVIOURS
from research.organisms.discover import DISCOVERY, STRENGTH
from research.organisms.splits import SPLITS

_PROMPTS, _TOKENS = 2, 24
#: A smaller share than this is no discovery: .17 was measured, 0 of random directions and on the
#: control (2026-11-22).
FLOOR = 0.05


def smoke(
    home: Path, base: str, source: int, target: int, num: int = 32, progress: bool = True
) -> dict[str, float]:
    """Find directions in ALL and in its control, and count replies that show a behaviour of ALL.

    Args:
        home: Folder of the organisms.
        base: Model that they were made from.
        source: Layer that is perturbed.
        target: Layer that is read.
        num: Number of candidates.
        progress: Whether to draw bars.

    Returns:
        Shares of the replies to two ordinary prompts that show a behaviour: ``"exponential on
        ALL"``, ``"random on ALL"`` and ``"exponential on SHAM"``; and ``"seconds"``.
    """
    start, shares = time.perf_counter(), {}
    for name, recipes in (("ALL", ("exponential", "random")), ("SHAM", ("exponential",))):
        lm = load_organism(home / name, base)
        cmap = CausalMap(lm, Prompts.chat(lm, DISCOVERY), source, target)
        search = FeatureSearch(cmap, progress=progress)
        for recipe in recipes:
            features, _ = search.candidates(recipe, num)
            shares[f"{recipe} on {name}"] = _shows(lm, features, progress)
    return {**shares, "seconds": time.perf_counter() - start}


def _shows(lm: LanguageModel, features: Steerable, progress: bool) -> float:
    """Share of replies to ordinary prompts that show a behaviour which can show there."""
    asked = SPLITS.prompts("ordinary", "screen")[:_PROMPTS]
    prompts = Prompts.chat(lm, [item.text for item in asked])
    table = generate(
        lm, prompts, features, max_new_tokens=_TOKENS, strength=STRENGTH, progress=progress
    )
    looked_for = [b for b in BEHAVIOURS.values() if b.kind == "ordinary"]
    shows = [
        any(b.shown(c.text, asked[c.prompt]) for b in looked_for)
        for c in table
        if c.kind == "feature"
    ]
    return sum(shows) / len(shows)
