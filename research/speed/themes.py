"""Theme score of vectors and adapters learnt from one prompt, and of random ones (bundled model).

``python -m research.speed.themes`` prints a table and writes
``research/results/speed/themes.json``, a row for each method and seed; a run that was broken off
goes on. A feature has a theme if naive Bayes tells its replies to eight held-out prompts from those
of the other 63 and of the unsteered model (see `melbo.evaluation.themes`). Directions and adapters
are each pushed at their own calibrated scale, adapters also at twice that, as the random ones are.
"""

import json
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

import torch

from melbo import (
    CPE,
    AdapterMap,
    CausalMap,
    Exponential,
    FeatureSet,
    Melbo,
    Prompts,
    Random,
    calibrate,
    fit,
    generate,
    load,
    themes,
)
from melbo.evaluation.scores import Judged
from melbo.maths.statistics import interval
from melbo.models.text.built_in import REFERENCE
from melbo.records import environment
from research.speed.results import RESULTS, save

PROMPT, SOURCE, TARGET, BAND = "Tell me a story", 8, 20, (8, 13)
M, SEEDS, NEW_TOKENS = 64, 3, 16
METHODS = ("CPE", "CPE at 2 R", "exponential", "MELBO", "random vectors", "random adapters")
OUT = RESULTS / "themes.json"


class World:
    """The model, its maps and their scales."""

    def __init__(self) -> None:
        self.lm = load("smollm2")
        prompt = Prompts.chat(self.lm, [PROMPT])
        self.held_out = Prompts.chat(self.lm, REFERENCE[:8])
        self.vectors = CausalMap(self.lm, prompt, SOURCE, TARGET)
        self.stacked = CausalMap(self.lm, prompt, SOURCE, TARGET, concatenate=True)
        self.adapters = AdapterMap(self.lm, prompt, BAND, TARGET)
        self.scale = {
            "vectors": calibrate(self.vectors, progress=False).scale,
            "adapters": calibrate(self.adapters, progress=False).scale,
        }

    def find(self, method: str, seed: int) -> FeatureSet:
        """Features of one of `METHODS`."""
        R, A = self.scale["vectors"], self.scale["adapters"]
        if method == "random adapters":
            some = fit(self.adapters, CPE(M, 2 * A, max_steps=1), seed=seed, progress=False)
            return some.features.random(M, torch.Generator().manual_seed(seed))
        chosen = {
            "CPE": (self.adapters, CPE(M, A, max_steps=20)),
            "CPE at 2 R": (self.adapters, CPE(M, 2 * A, max_steps=20)),
            "exponential": (self.vectors, Exponential(M, R)),
            "MELBO": (self.stacked, Melbo(M, R, steps=12, learning_rate=0.7)),
            "random vectors": (self.vectors, Random(M, R)),
        }
        map, how = chosen[method]
        return fit(map, how, seed=seed, progress=False).features

    def measure(self, method: str, seed: int) -> dict[str, Any]:
        """Theme score of one fit, and number of themed features that are active."""
        features = self.find(method, seed)
        table = generate(
            self.lm, self.held_out, features, max_new_tokens=NEW_TOKENS, progress=False
        )
        result = themes(table)
        judged = Judged(self.lm, self.held_out, table, progress=False)
        flags = [judged.scores("feature", i, range(len(self.held_out))).flag for i in range(M)]
        active = [flag == "active" for flag in flags]
        both = [themed and alive for themed, alive in zip(result.themed, active, strict=True)]
        return {
            "method": method,
            "seed": seed,
            "scale": features.scale,
            "score": result.score,
            "active_score": mean(both),
            "active": mean(active),
            "distinct": result.distinct,
            "hits": result.hits,
            "themed": result.themed,
            "flags": flags,
        }


def over(rows: Sequence[dict[str, Any]], key: str, digits: int = 2) -> str:
    """Mean ± deviation over seeds.

    Args:
        rows: Rows of a method.
        key: Key of the values.
        digits: Digits after the point.
    """
    values = [row[key] for row in rows]
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Means ± deviations over seeds in Markdown; Wilson intervals over all features."""
    lines = [
        "| | R | with a theme | 95 % | with a theme and active | active | told apart |",
        "|---" * 7 + "|",
    ]
    for method in METHODS:
        if own := [row for row in rows if row["method"] == method]:
            low, high = interval([float(t) for row in own for t in row["themed"]])
            cells = (
                method,
                f"{own[0]['scale']:.3g}",
                over(own, "score"),
                f"{low:.2f}–{high:.2f}",
                over(own, "active_score"),
                over(own, "active"),
                over(own, "distinct", 1),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what has not been measured yet."""
    rows = json.loads(OUT.read_text(encoding="utf-8"))["rows"] if OUT.exists() else []
    world = World()
    about = {"prompt": PROMPT, "held_out": REFERENCE[:8], "m": M}
    done = {(row["method"], row["seed"]) for row in rows}
    for seed in range(SEEDS):
        for method in METHODS:
            if (method, seed) in done:
                continue
            row = world.measure(method, seed)
            rows.append(row)
            save("themes", {"environment": environment(), **about, "rows": rows})
            short = {k: v for k, v in row.items() if k not in ("hits", "themed", "flags")}
            print(short, flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
