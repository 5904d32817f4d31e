"""MELBO's vectors trained sixteen at a time, beside one after the other, on the bundled model.

``python -m research.speed.melbo_speed`` prints the ratios of seconds per vector and step, blocks
compiled, and writes ``research/results/speed/melbo.json``. One after the other is measured twice:
by this library, and plainly, as a hook that adds the vector and a loss on the hidden states of the
model's own forward pass, which runs every block and the unembedding.
"""

import statistics
from typing import Any

import torch
from torch import Tensor

from melbo import CausalMap, LanguageModel, Melbo, Prompts, fit, load
from melbo.records import environment
from research.speed.measure import Jobs, in_turn
from research.speed.results import save

SOURCE, TARGET, VECTORS, STEPS, SCALE = 8, 20, 16, 100, 22.0
# steps of the plain training, and rounds
FEW, REPEATS = 10, 2
TOGETHER, ALONE, PLAIN = "together", "one after the other", "one after the other, plainly"


def plain_steps(lm: LanguageModel, prompt: tuple[int, ...], steps: int) -> None:
    """Train one vector by the model's own forward and backward pass.

    Args:
        lm: The model.
        prompt: Token ids.
        steps: Number of steps.
    """
    ids = torch.tensor([prompt])

    def read() -> Tensor:
        last: Tensor = lm.model(ids, output_hidden_states=True).hidden_states[TARGET][0, -3:]
        return last

    def push(block: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return args[0] + v, *args[1:]

    v = torch.nn.functional.normalize(torch.randn(lm.width), dim=0).mul(SCALE).requires_grad_()
    adam = torch.optim.AdamW([v], lr=1e-3, betas=(0.9, 0.98), amsgrad=True)
    base = read().detach()
    hook = lm.blocks[SOURCE].register_forward_pre_hook(push)
    try:
        for _ in range(steps):
            adam.zero_grad()
            loss = -(read() - base).norm()
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
    many, one = Melbo(VECTORS, SCALE, steps=STEPS), Melbo(1, SCALE, steps=STEPS)
    jobs: Jobs = {
        TOGETHER: lambda: fit(cmap, many, progress=False),
        ALONE: lambda: fit(cmap, one, progress=False),
        PLAIN: lambda: plain_steps(lm, prompt.tokens[0], FEW),
    }
    work = {TOGETHER: VECTORS * STEPS, ALONE: STEPS, PLAIN: FEW}
    times = in_turn(jobs, REPEATS, "fits")
    each = {name: [t / work[name] for t in seconds] for name, seconds in times.items()}
    best = statistics.median(each[TOGETHER])
    ratio = {name: statistics.median(each[name]) / best for name in (ALONE, PLAIN)}
    result = {
        "environment": environment(),
        "vectors": VECTORS,
        "steps": STEPS,
        "seconds_per_vector_and_step": each,
        "ratio": ratio,
    }
    print("  ".join(f"{name} × {value:.2f}" for name, value in ratio.items()))
    save("melbo", result)


if __name__ == "__main__":
    main()
