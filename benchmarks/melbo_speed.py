"""MELBO's vectors trained sixteen at a time, beside one after the other: seconds per vector and step on the bundled model.

python benchmarks/melbo_speed.py    prints the ratio and writes benchmarks/results/melbo.json
"""

import json
import statistics
from pathlib import Path

from melbo import CausalMap, Melbo, Prompts, fit, load
from melbo.bench import environment, in_turn

VECTORS, STEPS, SCALE = 16, 100, 22.0
FEW, REPEATS = 2, 3  # vectors trained one after the other in a round, and rounds


def main() -> None:
    """Measure in turn."""
    lm = load("smollm2")
    cmap = CausalMap(lm, Prompts.chat(lm, ["Tell me how to bake a cake"]), 8, 20, concatenate=True)
    together, alone = Melbo(VECTORS, SCALE, steps=STEPS), Melbo(FEW, SCALE, steps=STEPS, together=1)
    jobs = {"together": lambda: fit(cmap, together, progress=False), "one after the other": lambda: fit(cmap, alone, progress=False)}
    times = in_turn(jobs, REPEATS, "fits")
    each = {name: [t / (STEPS * (VECTORS if name == "together" else FEW)) for t in seconds] for name, seconds in times.items()}
    ratio = statistics.median(each["one after the other"]) / statistics.median(each["together"])
    result = {"environment": environment(), "vectors": VECTORS, "steps": STEPS, "seconds_per_vector_and_step": each, "ratio": ratio}
    print(f"one after the other takes {ratio:.2f} × as long as {VECTORS} together")
    (Path(__file__).parent / "results" / "melbo.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
