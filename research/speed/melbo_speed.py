"""MELBO's vectors trained sixteen at a time, beside one after the other: seconds per vector and step on the bundled model, blocks compiled.

python benchmarks/melbo_speed.py    prints the ratios and writes benchmarks/results/melbo.json

One after the other is measured twice: by this library, and plainly, as a hook that adds the vector and a loss on the hidden states of the model's own
forward pass, which runs every block and the head.
"""

import json
import statistics
from pathlib import Path

import torch

from melbo import CausalMap, Melbo, Prompts, fit, load
from melbo.records import environment
from research.speed.measure import in_turn

SOURCE, TARGET, VECTORS, STEPS, SCALE = 8, 20, 16, 100, 22.0
FEW, REPEATS = 10, 2  # steps of the plain training, and rounds


def plain_steps(lm, prompt: tuple[int, ...], steps: int) -> None:
    """Train one vector by the model's own forward and backward pass."""
    ids = torch.tensor([prompt])
    v = torch.nn.functional.normalize(torch.randn(lm.width), dim=0).mul(SCALE).requires_grad_()
    adam = torch.optim.AdamW([v], lr=1e-3, betas=(0.9, 0.98), amsgrad=True)
    base = lm.model(ids, output_hidden_states=True).hidden_states[TARGET][0, -3:].detach()
    hook = lm.blocks[SOURCE].register_forward_pre_hook(lambda block, args: (args[0] + v, *args[1:]))
    try:
        for _ in range(steps):
            adam.zero_grad()
            loss = -(
                lm.model(ids, output_hidden_states=True).hidden_states[TARGET][0, -3:] - base
            ).norm()
            loss.backward()
            adam.step()
            with torch.no_grad():
                v.mul_(SCALE / v.norm())
    finally:
        hook.remove()


def main() -> None:
    """Measure in turn."""
    lm = load("smollm2")
    prompt = Prompts.chat(lm, ["Tell me how to bake a cake"])
    cmap = CausalMap(lm, prompt, SOURCE, TARGET, concatenate=True, compile=True)
    together, alone = Melbo(VECTORS, SCALE, steps=STEPS), Melbo(1, SCALE, steps=STEPS)
    jobs = {
        "together": lambda: fit(cmap, together, progress=False),
        "one after the other": lambda: fit(cmap, alone, progress=False),
        "one after the other, plainly": lambda: plain_steps(lm, prompt.tokens[0], FEW),
    }
    work = {
        "together": VECTORS * STEPS,
        "one after the other": STEPS,
        "one after the other, plainly": FEW,
    }
    times = in_turn(jobs, REPEATS, "fits")
    each = {name: [t / work[name] for t in seconds] for name, seconds in times.items()}
    best = statistics.median(each["together"])
    ratio = {
        name: statistics.median(seconds) / best
        for name, seconds in each.items()
        if name != "together"
    }
    result = {
        "environment": environment(),
        "vectors": VECTORS,
        "steps": STEPS,
        "seconds_per_vector_and_step": each,
        "ratio": ratio,
    }
    print("  ".join(f"{name} × {value:.2f}" for name, value in ratio.items()))
    (Path(__file__).parent / "results" / "melbo.json").write_text(
        json.dumps(result, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
