"""Cost of a fit as it grows: seconds of a sweep and peak memory, on the bundled model.

``python -m research.speed.scaling`` prints a table and writes
``research/results/speed/scaling.json``. Each of m (directions), n (prompts), T (tokens of a prompt)
and t − s (blocks) is varied alone, the sizes measured in turn, five times; the exponent is the
slope of log seconds on log size. For blocks it is taken on the operations needed
(`research.speed.flops.needed_flops`): the last block of a slice costs less than the others,
whatever their number. Memory is the peak of a process of its own for each size.
"""

import math
import statistics
from collections.abc import Callable
from typing import Any

import torch

from melbo import CausalMap, Exponential, LanguageModel, Prompts, load
from melbo.records import environment
from research.speed.flops import needed_flops
from research.speed.measure import in_turn
from research.speed.results import forget_peak, peak_of, print_peak, save

USUAL = {"m": 64, "n": 1, "tokens": 37, "target": 20}
VARIED = {"m": (32, 64, 128), "n": (1, 4, 16), "tokens": (20, 40, 80), "target": (11, 14, 20)}
MEMORY = {"m": (64, 512), "n": (1, 16)}
REPEATS = 5


def make(
    lm: LanguageModel, m: int, n: int, tokens: int, target: int
) -> tuple[Callable[[], Any], float]:
    """A sweep, ready to run, and the operations it needs.

    Args:
        lm: The model.
        m: Number of directions.
        n: Number of prompts.
        tokens: Length of a prompt.
        target: Layer that is read.
    """
    draw = torch.Generator().manual_seed(0)
    rows = tuple(
        tuple(torch.randint(1000, 40000, (tokens,), generator=draw).tolist()) for _ in range(n)
    )
    cmap = CausalMap(lm, Prompts(("random tokens",) * n, rows), 8, target, compile=False)
    method = Exponential(m, 22.0, start="backward")
    state = method.init(cmap, draw)
    return lambda: method.step(cmap, state), m * needed_flops(cmap, backward=True)


def exponent(lm: LanguageModel, name: str) -> dict[str, Any]:
    """Growth of the seconds of a sweep with one size.

    Args:
        lm: The model.
        name: The size, one of `VARIED`.
    """
    sizes = VARIED[name]
    base = {**USUAL, "m": 32} if name in ("n", "tokens") else USUAL
    made = [make(lm, **{**base, name: size}) for size in sizes]
    jobs = {str(size): job for size, (job, _) in zip(sizes, made, strict=True)}
    seconds = list(in_turn(jobs, REPEATS, name, progress=False).values())
    flops = [needed for _, needed in made]
    against = flops if name == "target" else sizes
    medians = [statistics.median(t) for t in seconds]
    x, y = [math.log(a) for a in against], [math.log(t) for t in medians]
    slope = statistics.linear_regression(x, y).slope
    told = [round(t, 2) for t in medians]
    print(f"{name:7} {sizes}: {told} s, exponent {slope:.3f}", flush=True)
    return {"sizes": sizes, "seconds": seconds, "flops": flops, "exponent": slope}


def one_sweep(**size: int) -> None:
    """Make a sweep and print the peak of the process since the model was loaded.

    Args:
        size: Sizes that differ from the usual ones.
    """
    lm = load("smollm2")
    forget_peak()
    job, _ = make(lm, **{**USUAL, **size})
    job()
    print_peak()


def main() -> None:
    """Measure time, then memory."""
    lm = load("smollm2")
    result = {"environment": environment(), "time": {name: exponent(lm, name) for name in VARIED}}
    peaks = {}
    for name, sizes in MEMORY.items():
        code = f"from {__package__}.scaling import one_sweep; one_sweep({name}={{}})"
        peaks[name] = {size: peak_of(code.format(size)) for size in sizes}
        told = ", ".join(f"{size}: {peak / 2**20:.0f} MiB" for size, peak in peaks[name].items())
        print(f"peak memory with {name} = {told}", flush=True)
    save("scaling", {**result, "peak_bytes": peaks})


if __name__ == "__main__":
    main()
