"""Settings that discovery depends on: layers, norms, prompts, target positions.

They are compared by likelihood recovery (docs/method.md §8, M3), which takes no decoding.

python -m research.organisms.settings    table of what 64 directions of each setting reach on ALL;
                                         rows are kept, and the work goes on where it stopped

The measure: how far does the best direction bring the likelihood of the reply that the trigger
brings out, its first 8 tokens, after the prompt without the trigger, from its value without any
direction (0) to its value with the trigger (1)? Directions are pushed at the benchmark's multiple
of R. How well that foretells what a direction makes the model say is measured too.
"""

import json
import random
import time
from collections.abc import Sequence
from statistics import mean
from typing import Any

from melbo import CausalMap, Exponential, FeatureSet, Prompts, fit, load
from melbo.discovery.recipes import FeatureSearch
from melbo.discovery.steered import Steered
from melbo.evaluation.tables import markdown
from melbo.maths.linalg import Orthogonalise
from melbo.records import ResultLog, Row, environment
from research.organisms import (
    BEHAVIOURS,
    MADE,
    RESULTS,
    Behaviour,
    adapter_digest,
    items,
    load_organism,
)
from research.organisms.discover import DISCOVERY, STRENGTH, DiscoveryTrial, likelihood
from research.organisms.metrics import recovery
from research.organisms.train import Pair, own_replies

_NUM, _REPLIES, _TOKENS = 64, 2, 8
_FOUR = (
    *DISCOVERY,
    "What is a good way to spend a rainy day?",
    "How does a clock work?",
    "Give me advice on moving to a new city.",
)
#: The usual setting; ``learn`` is the multiple of R at which directions are learnt.
USUAL: dict[str, Any] = {
    "recipe": "exponential",
    "source": 12,
    "target": 24,
    "learn": 1.0,
    "prompts": DISCOVERY,
    "max_steps": 10,
    "orthogonalise": "qr",
}
#: Other settings, by how they differ from it.
SETTINGS: dict[str, dict[str, Any]] = {
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
    "from four prompts": {"prompts": _FOUR},
    "target length left out": {"normalise_target": True},
    "one target token": {"target_tokens": 1},
    "first token unsteered": {"skip_first": True},
}


class Likelihoods:
    """ALL, and the replies that its triggers bring out.

    Attributes:
        lm: The organism.
        said: For each behaviour, prompts without the trigger and prompts with it, each with the
            beginning of the reply that the trigger brings out.
    """

    def __init__(self) -> None:
        self.lm = load_organism(MADE / "ALL")
        self.said = {name: self._said(b) for name, b in BEHAVIOURS.items()}

    def _said(self, b: Behaviour) -> tuple[list[Pair], list[Pair]]:
        triggered = b.triggered("train", True, random.Random(0))[:_REPLIES]
        texts = [text for text, _ in triggered]
        own = own_replies(self.lm, texts, _TOKENS, progress=False)
        # the prompt without a semantic trigger is another one
        bare = [item for _, item in triggered]
        if b.semantic is not None:
            bare = items(b.kind, "train")[:_REPLIES]
        replies = [own[text][:_TOKENS] for text in texts]
        without = Prompts.chat(self.lm, [item.text for item in bare]).tokens
        with_it = Prompts.chat(self.lm, texts).tokens
        return list(zip(without, replies, strict=True)), list(zip(with_it, replies, strict=True))

    def recovery(self, features: FeatureSet) -> dict[str, list[float]]:
        """Recovery of each behaviour by every direction."""
        recovered = {}
        for name, (alone, triggered) in self.said.items():
            nothing = likelihood(self.lm, None, alone).item()
            everything = likelihood(self.lm, None, triggered).item()
            reached = likelihood(self.lm, features, alone).tolist()
            # a trigger that changes nothing leaves nothing to recover
            recovered[name] = [recovery(x, nothing, everything) or 0.0 for x in reached]
        return recovered

    def measure(
        self,
        recipe: str,
        source: int,
        target: int,
        learn: float,
        prompts: Sequence[str],
        max_steps: int,
        orthogonalise: Orthogonalise,
        **read: Any,
    ) -> Row:
        """Fit directions by one setting, and measure their recovery of each behaviour.

        Args:
            recipe: ``"exponential"``, or the name of a control.
            source: Layer that is perturbed.
            target: Layer that is read.
            learn: Multiple of R at which directions are learnt.
            prompts: Prompts that they are learnt from.
            max_steps: Sweeps at most.
            orthogonalise: As `melbo.Exponential` takes it.
            read: More settings of the map.

        Returns:
            R, seconds of the fit, and for each behaviour the recovery by every direction, the best
            first.
        """
        cmap = CausalMap(self.lm, Prompts.chat(self.lm, prompts), source, target, **read)
        search = FeatureSearch(cmap, progress=False)
        start, R = time.perf_counter(), search.scale
        if recipe == "exponential":
            method = Exponential(_NUM, learn * R, max_steps=max_steps, orthogonalise=orthogonalise)
            V = fit(search.map, method, progress=False).features.V.float().cpu()
        else:
            V, _ = search.find(recipe, _NUM, R)
        seconds = time.perf_counter() - start
        reached = self.recovery(search.feature_set(V, STRENGTH * R))
        return {
            "scale": R,
            "seconds": seconds,
            "recovery": {name: sorted(x, reverse=True) for name, x in reached.items()},
        }

    def agreement(self) -> Row:
        """Recovery and share of screening prompts that show it, by direction of the usual setting.

        Of each behaviour, in the same order of directions.
        """
        source, target = USUAL["source"], USUAL["target"]
        trial = DiscoveryTrial(self.lm, load("smollm2"), self.lm, source, target, progress=False)
        search = trial.search(adapters=False)
        features, _ = search.candidates("exponential", _NUM, 0)
        pushed = search.feature_set(features.V, STRENGTH * search.scale)
        screened = trial.screen(Steered(features, STRENGTH))
        return {"recovery": self.recovery(pushed), "shown": screened.shown}


def table(rows: Sequence[Row]) -> str:
    """The best direction of each setting in Markdown, a column for each behaviour.

    Args:
        rows: Rows of `Likelihoods.measure`, each with the name of its setting.
    """
    lines = []
    for row in rows:
        best = [row["recovery"][name][0] for name in BEHAVIOURS]
        shares = [f"{x:.2f}" for x in (*best, mean(best))]
        lines.append([row["setting"], *shares, f"{row['scale']:.3g}", f"{row['seconds']:.0f}"])
    return markdown(["", *BEHAVIOURS, "mean", "R", "fit, s"], lines)


def foretold(row: Row) -> str:
    """Share of pairs of directions in which the one that shows a behaviour recovers more.

    The other one does not show it. For each behaviour that some direction shows; .5 is chance.

    Args:
        row: The row of `Likelihoods.agreement`.
    """
    said = []
    for name, shares in row["shown"].items():
        pairs = list(zip(row["recovery"][name], shares, strict=True))
        high = [x for x, share in pairs if share > 0]
        low = [x for x, share in pairs if share == 0]
        if high:
            above = mean((a > b) + (a == b) / 2 for a in high for b in low)
            said.append(f"{name} {above:.2f} ({len(high)} of {len(shares)})")
    return ", ".join(said)


def _cases() -> tuple[list[Row], Row]:
    """Keys of the rows of all settings, and of the row of `Likelihoods.agreement`."""
    about = {
        "adapter": adapter_digest(MADE / "ALL"),
        "strength": STRENGTH,
        "factors": _NUM,
        "replies": _REPLIES,
        "tokens": _TOKENS,
    }
    settings = [
        {"setting": name, **about, "settings": json.loads(json.dumps({**USUAL, **differs}))}
        for name, differs in SETTINGS.items()
    ]
    return settings, {"setting": "agreement", **about, "settings": settings[0]["settings"]}


def _log() -> ResultLog:
    return ResultLog(RESULTS / "settings.jsonl")


def published() -> list[Row]:
    """Committed rows of all settings."""
    kept = _log()
    return [row for case in _cases()[0] for row in kept.of(case)]


def main() -> None:
    """Measure what has no row yet, and print the table."""
    kept, (settings, agreement) = _log(), _cases()
    left = kept.missing([*settings, agreement])
    likelihoods = Likelihoods() if left else None
    for case in left:
        assert likelihoods is not None
        if case == agreement:
            row = likelihoods.agreement()
        else:
            row = likelihoods.measure(**case["settings"])
        kept.add({**case, "environment": environment(), **row})
    print(table(published()))
    print(foretold(kept.of(agreement)[0]))


if __name__ == "__main__":
    main()
