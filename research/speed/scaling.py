"""What a fit costs as it grows: seconds of a sweep and peak memory, on the bundled model.

python benchmarks/scaling.py    prints a table and writes benchmarks/results/scaling.json

Each of m (directions), n (prompts), T (tokens of a prompt) and t − s (blocks) is varied alone, the sizes measured in turn, five times; the
exponent is the slope of log seconds on log size. With blocks it is taken on the operations needed (`research.speed.measure.needed_flops`): the last
block of a slice costs less than the others, whatever their number. Memory is the peak of a process of its own for each size.
"""

import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from melbo import CausalMap, Exponential, Prompts, load
from melbo.records import environment
from research.speed.measure import in_turn, needed_flops

USUAL = {"m": 64, "n": 1, "tokens": 37, "target": 20}
VARIED = {"m": (32, 64, 128), "n": (1, 4, 16), "tokens": (20, 40, 80), "target": (11, 14, 20)}
MEMORY = {"m": (64, 512), "n": (1, 16)}
REPEATS = 5


def make(lm, m: int, n: int, tokens: int, target: int):
    """A sweep of this size, ready to run, and the operations it needs."""
    draw = torch.Generator().manual_seed(0)
    rows = tuple(
        tuple(torch.randint(1000, 40000, (tokens,), generator=draw).tolist()) for _ in range(n)
    )
    cmap = CausalMap(lm, Prompts(("random tokens",) * n, rows), 8, target, compile=False)
    method = Exponential(m, 22.0, start="backward")
    state = method.init(cmap, draw)
    return lambda: method.step(cmap, state), m * needed_flops(cmap, backward=True)


def exponent(lm, name: str) -> dict:
    """How the seconds of a sweep grow with one size."""
    sizes = VARIED[name]
    base = {**USUAL, "m": 32} if name in ("n", "tokens") else USUAL
    made = [make(lm, **{**base, name: size}) for size in sizes]
    seconds = list(
        in_turn(
            {str(size): job for size, (job, _) in zip(sizes, made, strict=True)},
            REPEATS,
            name,
            progress=False,
        ).values()
    )
    flops = [needed for _, needed in made]
    against = flops if name == "target" else sizes
    x, y = [math.log(a) for a in against], [math.log(statistics.median(t)) for t in seconds]
    slope = statistics.linear_regression(x, y).slope
    print(
        f"{name:7} {sizes}: {[round(statistics.median(t), 2) for t in seconds]} s, exponent {slope:.3f}",
        flush=True,
    )
    return {"sizes": sizes, "seconds": seconds, "flops": flops, "exponent": slope}


def peak(**size: int) -> int:
    """Peak memory, in bytes, of a process that makes one sweep of this size."""
    code = f"from scaling import one_sweep; one_sweep({size!r})"
    out = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        check=True,
        capture_output=True,
        text=True,
    )
    return int(out.stdout.split()[-1])


def one_sweep(size: dict) -> None:
    """Make the sweep and print the peak from when the model is loaded (loading has a peak of its own)."""
    lm = load("smollm2")
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew
    job, _ = make(lm, **{**USUAL, **size})
    job()
    peaks = [
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    ]
    print(int(peaks[0].split()[1]) * 1024)


def main() -> None:
    """Measure time, then memory."""
    lm = load("smollm2")
    result = {"environment": environment(), "time": {name: exponent(lm, name) for name in VARIED}}
    result["peak_bytes"] = {}
    for name, sizes in MEMORY.items():
        found = {size: peak(**{name: size}) for size in sizes}
        result["peak_bytes"][name] = found
        print(
            f"peak memory with {name} = "
            + ", ".join(f"{size}: {bytes_ / 2**20:.0f} MiB" for size, bytes_ in found.items()),
            flush=True,
        )
    out = Path(__file__).parent / "results" / "scaling.json"
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
