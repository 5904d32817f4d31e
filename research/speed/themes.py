"""Theme score of vectors and adapters learnt from one prompt, with random ones beside them (bundled model).

python benchmarks/themes.py    prints a table and writes benchmarks/results/themes.json (a row for each method and seed)

A feature has a theme if naive Bayes tells its replies to eight held-out prompts from those of the other 63 and of the unsteered model (see
`melbo.themes`). Directions and adapters are each pushed at their own calibrated scale, adapters also at twice that, as the random ones are. What has
been measured is in the file after every fit; a broken-off run goes on.
"""

import json
from pathlib import Path
from statistics import mean, stdev

import torch

from melbo import (
    CPE,
    AdapterMap,
    CausalMap,
    Exponential,
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
from melbo.models.prompts import REFERENCE
from melbo.records import environment

PROMPT, SOURCE, TARGET, BAND = "Tell me a story", 8, 20, (8, 13)
M, SEEDS, NEW_TOKENS = 64, 3, 16
METHODS = ("CPE", "CPE at 2 R", "exponential", "MELBO", "random vectors", "random adapters")
OUT = Path(__file__).parent / "results" / "themes.json"


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

    def find(self, method: str, seed: int):
        """The features."""
        R, A = self.scale["vectors"], self.scale["adapters"]
        if method == "random adapters":
            return fit(
                self.adapters, CPE(M, 2 * A, max_steps=1), seed=seed, progress=False
            ).features.random(M, torch.Generator().manual_seed(seed))
        chosen = {
            "CPE": (self.adapters, CPE(M, A, max_steps=20)),
            "CPE at 2 R": (self.adapters, CPE(M, 2 * A, max_steps=20)),
            "exponential": (self.vectors, Exponential(M, R)),
            "MELBO": (self.stacked, Melbo(M, R, steps=12, learning_rate=0.7)),
            "random vectors": (self.vectors, Random(M, R)),
        }
        return fit(*chosen[method], seed=seed, progress=False).features

    def measure(self, method: str, seed: int) -> dict:
        """The theme score of one fit, and how many themed features are active."""
        features = self.find(method, seed)
        table = generate(
            self.lm,
            self.held_out,
            features,
            max_new_tokens=NEW_TOKENS,
            progress=False,
        )
        found = themes(table)
        judged = Judged(self.lm, self.held_out, table, progress=False)
        flags = [judged.scores("feature", i, range(len(self.held_out))).flag for i in range(M)]
        active = [flag == "active" for flag in flags]
        both = [themed and alive for themed, alive in zip(found.themed, active, strict=True)]
        return {
            "method": method, "seed": seed, "scale": features.scale, "score": found.score, "active_score": mean(both), "active": mean(active),
            "distinct": found.distinct, "hits": found.hits, "themed": found.themed, "flags": flags,
        }  # fmt: skip


def over(rows: list[dict], key: str, digits: int = 2) -> str:
    """Mean and deviation over seeds."""
    values = [row[key] for row in rows]
    return f"{mean(values):.{digits}f}" + (
        f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    )


def table(rows: list[dict]) -> str:
    """Means over seeds, with deviations; Wilson intervals over all features."""
    lines = [
        "| | R | with a theme | 95 % | with a theme and active | active | told apart |",
        "|---" * 7 + "|",
    ]
    for method in METHODS:
        if of := [row for row in rows if row["method"] == method]:
            low, high = interval([float(t) for row in of for t in row["themed"]])
            shares = " | ".join(
                (
                    over(of, "score"),
                    f"{low:.2f}–{high:.2f}",
                    over(of, "active_score"),
                    over(of, "active"),
                    over(of, "distinct", 1),
                )
            )
            lines.append(f"| {method} | {of[0]['scale']:.3g} | {shares} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what has not been measured yet."""
    rows = json.loads(OUT.read_text())["rows"] if OUT.exists() else []
    world = World()
    for seed in range(SEEDS):
        for method in METHODS:
            if not any(row["method"] == method and row["seed"] == seed for row in rows):
                rows.append(world.measure(method, seed))
                OUT.write_text(
                    json.dumps(
                        {
                            "environment": environment(),
                            "prompt": PROMPT,
                            "held_out": REFERENCE[:8],
                            "m": M,
                            "rows": rows,
                        },
                        indent=1,
                    )
                    + "\n"
                )
                print(
                    {k: v for k, v in rows[-1].items() if k not in ("hits", "themed", "flags")},
                    flush=True,
                )
    print(table(rows))


if __name__ == "__main__":
    main()
