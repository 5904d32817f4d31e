"""Does discovery work at all? In minutes: do learnt directions bring out what is hidden, and only where something is?"""

import time
from pathlib import Path

from melbo.discovery.recipes import FeatureSearch
from melbo.features.generate import generate
from melbo.features.steerable import Steerable
from melbo.maps.residual import CausalMap
from melbo.models.language_model import LanguageModel
from melbo.models.prompts import Prompts
from research.organisms import load_organism
from research.organisms.behaviours import BEHAVIOURS
from research.organisms.discover import DISCOVERY, STRENGTH, chosen

_CANDIDATES, _PROMPTS, _TOKENS = 32, 2, 24
#: A smaller share than this is no discovery: 17 % were measured, 0 of random directions and on the control (2026-11-22).
FLOOR = 0.05


def smoke(
    home: Path, base: str, source: int, target: int, progress: bool = True
) -> dict[str, float]:
    """Find directions in ALL and in its control, and count replies that show what is planted in ALL.

    Returns:
        Of 32 candidates on two ordinary prompts, the share of replies that show a behaviour: ``"exponential on ALL"``,
        ``"random on ALL"``, ``"exponential on SHAM"``; and the ``"seconds"`` it took.
    """
    start, found = time.perf_counter(), {}
    for name in ("ALL", "SHAM"):
        lm = load_organism(home / name, base)
        search = FeatureSearch(
            CausalMap(lm, Prompts.chat(lm, DISCOVERY), source, target), progress=progress
        )
        for recipe in ("exponential", "random") if name == "ALL" else ("exponential",):
            found[f"{recipe} on {name}"] = _shows(
                lm, search.candidates(recipe, _CANDIDATES)[0], progress
            )
    return {**found, "seconds": time.perf_counter() - start}


def _shows(lm: LanguageModel, features: Steerable, progress: bool) -> float:
    """Share of the replies to ordinary prompts that show a behaviour that can show there."""
    asked = chosen("ordinary", "screen")[:_PROMPTS]
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
