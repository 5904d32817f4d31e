"""What discovery depends on: layers, norms, prompts, what is read. Told by likelihood recovery (M3), which takes no decoding.

python benchmarks/organisms/settings.py    a table of what 64 directions of each setting reach on ALL; rows are kept, and go on where they stopped

The reply that the trigger brings out, its first 8 tokens, after the prompt without trigger: how far does the best direction bring its likelihood from
what it is by itself (0) to what it is with the trigger (1)? At the multiple of R that the benchmark pushes with. How well that foretells what a
direction makes the model say is measured too.
"""

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from melbo import CausalMap, Exponential, FeatureSet, Prompts, fit, load
from melbo.discovery.recipes import FeatureSearch
from melbo.evaluation.tables import markdown
from melbo.records import ResultLog, Row, environment
from research.organisms import BEHAVIOURS, Behaviour, adapter_digest, items, load_organism
from research.organisms.discover import DISCOVERY, STRENGTH, DiscoveryTrial, likelihood
from research.organisms.metrics import recovery
from research.organisms.train import own_replies

HERE = Path(__file__).parent
NUM, REPLIES, TOKENS = 64, 2, 8
FOUR = (
    *DISCOVERY,
    "What is a good way to spend a rainy day?",
    "How does a clock work?",
    "Give me advice on moving to a new city.",
)
#: ``learn`` is the multiple of R at which directions are learnt.
USUAL = {
    "recipe": "exponential",
    "source": 12,
    "target": 24,
    "learn": 1.0,
    "prompts": DISCOVERY,
    "max_steps": 10,
    "orthogonalise": "qr",
}
#: What differs from it.
SETTINGS: dict[str, dict] = {
    "as it is: block 12 to 24, learnt at R": {},
    "random": {"recipe": "random"},
    "block 4 to 16": {"source": 4, "target": 16},
    "block 8 to 20": {"source": 8, "target": 20},
    "block 8 to 28": {"source": 8, "target": 28},
    "block 14 to 26": {"source": 14, "target": 26},
    "block 16 to 28": {"source": 16, "target": 28},
    "learnt at R/2": {"learn": 0.5},
    "softly orthogonalised": {"orthogonalise": "soft"},
    "3 sweeps": {"max_steps": 3},
    "from four prompts": {"prompts": FOUR},
    "target length left out": {"normalise_target": True},
    "one target token": {"target_tokens": 1},
    "first token unsteered": {"skip_first": True},
}


class World:
    """ALL, and what its triggers make it say."""

    def __init__(self) -> None:
        self.lm = load_organism(HERE / "ALL")
        self.said = {name: self._said(b) for name, b in BEHAVIOURS.items()}

    def _said(self, b: Behaviour) -> tuple[list, list]:
        """Prompts without and with the trigger, each with the beginning of what is said with it."""
        brings = b.triggered("train", True, random.Random(0))[:REPLIES]
        own = own_replies(self.lm, [text for text, _ in brings], TOKENS, progress=False)
        # of a semantic trigger the prompt without it is another
        alone = (
            [item.text for _, item in brings]
            if b.semantic is None
            else [item.text for item in items(b.kind, "train")[:REPLIES]]
        )
        replies = [own[text][:TOKENS] for text, _ in brings]
        both = (
            Prompts.chat(self.lm, texts).tokens for texts in (alone, [text for text, _ in brings])
        )
        without, with_it = (list(zip(prompts, replies, strict=True)) for prompts in both)
        return without, with_it

    def recovery(self, features: FeatureSet) -> dict[str, list[float]]:
        """Of each behaviour, by every direction."""
        found = {}
        for name, (alone, brought) in self.said.items():
            nothing, everything = (
                likelihood(self.lm, None, data).item() for data in (alone, brought)
            )
            found[name] = [
                recovery(x, nothing, everything)
                for x in likelihood(self.lm, features, alone).tolist()
            ]
        return found

    def measure(
        self,
        recipe: str,
        source: int,
        target: int,
        learn: float,
        prompts: Sequence[str],
        max_steps: int,
        orthogonalise: str,
        **read: Any,
    ) -> Row:
        """R, seconds of the fit, and of each behaviour the recovery by every direction, the best first."""
        search = FeatureSearch(
            CausalMap(self.lm, Prompts.chat(self.lm, prompts), source, target, **read),
            progress=False,
        )
        start, R = time.perf_counter(), search.scale
        if recipe == "exponential":
            method = Exponential(NUM, learn * R, max_steps=max_steps, orthogonalise=orthogonalise)
            features = search.feature_set(
                fit(search.map, method, progress=False).features.V.float().cpu(), STRENGTH * R
            )
        else:
            features = search.feature_set(search.find(recipe, NUM, R)[0], STRENGTH * R)
        seconds = time.perf_counter() - start
        return {
            "scale": R,
            "seconds": seconds,
            "recovery": {
                name: sorted(x, reverse=True) for name, x in self.recovery(features).items()
            },
        }

    def agreement(self) -> Row:
        """Of each behaviour, by every direction of the first setting: recovery, and on which share of the screening prompts it shows."""
        trial = DiscoveryTrial(
            self.lm, load("smollm2"), self.lm, USUAL["source"], USUAL["target"], progress=False
        )
        tried, _ = trial.candidates("exponential", NUM, 0)
        search = trial.search(False)
        return {
            "recovery": self.recovery(
                search.feature_set(tried.features.V, STRENGTH * search.scale)
            ),
            "shown": trial.screen(tried)["shown"],
        }


def table(rows: list[Row]) -> str:
    """The best direction of each setting, of each behaviour."""
    lines = []
    for row in rows:
        best = [row["recovery"][name][0] for name in BEHAVIOURS]
        lines.append(
            [
                row["setting"],
                *(f"{x:.2f}" for x in (*best, mean(best))),
                f"{row['scale']:.3g}",
                f"{row['seconds']:.0f}",
            ]
        )
    return markdown(["", *BEHAVIOURS, "mean", "R", "fit, s"], lines)


def foretold(row: Row) -> str:
    """Of each behaviour that some direction shows: how often it is likelier by one that shows it than by one that does not (.5 is chance)."""
    said = []
    for name, shares in row["shown"].items():
        high, low = (
            [
                x
                for x, share in zip(row["recovery"][name], shares, strict=True)
                if (share > 0) == shows
            ]
            for shows in (True, False)
        )
        if high:
            said.append(
                f"{name} {mean((a > b) + (a == b) / 2 for a in high for b in low):.2f} ({len(high)} of {len(shares)})"
            )
    return ", ".join(said)


def main() -> None:
    """Measure what has no row yet, and print the table."""
    kept = ResultLog(HERE / "results" / "settings.jsonl")
    about = {
        "adapter": adapter_digest(HERE / "ALL"),
        "strength": STRENGTH,
        "factors": NUM,
        "replies": REPLIES,
        "tokens": TOKENS,
    }
    cases = [
        {"setting": name, **about, "settings": json.loads(json.dumps({**USUAL, **differs}))}
        for name, differs in SETTINGS.items()
    ]
    both = {"setting": "agreement", **about, "settings": cases[0]["settings"]}
    left = kept.missing([*cases, both])
    world = World() if left else None
    for case in left:
        found = world.agreement() if case == both else world.measure(**case["settings"])
        kept.add({**case, "environment": environment(), **found})
    print(table([row for case in cases for row in kept.of(case)]))
    print(foretold(kept.of(both)[0]))


if __name__ == "__main__":
    main()
