"""What a sweep of CPE costs on the bundled model, beside one factor at a time and beside matrix products alone; peak memory; twenty sweeps.

python benchmarks/adapters.py    prints a table and writes benchmarks/results/adapters.json

One at a time is measured twice: by this library, and plainly, as hooks on the model's own forward pass, which runs every block and the head.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from melbo import CPE, AdapterMap, Prompts, fit, load
from melbo.models.low_rank import pairs
from melbo.records import environment
from research.speed.measure import in_turn, needed_flops, products, weights

PROMPT, BAND, TARGET, SCALE = "Tell me a story", (8, 13), 20, 2.2
M, FEW, REPEATS = 64, 8, 7


def make(lm) -> AdapterMap:
    """The map."""
    return AdapterMap(lm, Prompts.chat(lm, [PROMPT]), BAND, TARGET, compile=True)


def needed(cmap: AdapterMap, m: int) -> float:
    """Operations of a sweep. In the first block only what follows its edited matrix differs from factor to factor, and has a gradient."""
    config, tokens = cmap.lm.config, len(cmap.prompts.tokens[0])
    heads = config.num_attention_heads
    block = cmap.lm.blocks[cmap.source]
    attention = sum(size for name, size in weights(block, config).items() if "attn" in name)
    pairs = 4 * heads * (config.hidden_size // heads) * tokens * (tokens + 1) / 2
    in_vain = m * (4 * attention * tokens + 3 * pairs) - (2 * attention * tokens + pairs)
    return m * needed_flops(cmap, backward=True) - in_vain


def plain_sweep(cmap: AdapterMap, V: torch.Tensor) -> None:
    """Value and gradient of one factor after the other, by the model's own forward and backward pass."""
    lm, ids = cmap.lm, torch.tensor([cmap.prompts.tokens[0]])
    with torch.no_grad():
        base = lm.model(ids, output_hidden_states=True).hidden_states[TARGET][0, -3:]
    for v in V:
        edits = [
            t[0].requires_grad_()
            for pair in pairs(cmap.sites, v[None], torch.tensor([SCALE]))
            for t in pair
        ]
        hooks = [
            lm.model.get_submodule(site.name).register_forward_hook(
                lambda module, args, out, a=a, b=b: out + (args[0] @ a)[..., None] * b
            )
            for site, a, b in zip(cmap.sites, edits[::2], edits[1::2], strict=True)
        ]
        try:
            change = (
                lm.model(ids, output_hidden_states=True).hidden_states[TARGET][0, -3:] - base
            ).mean(0)
            torch.autograd.grad(change.norm(), edits)
        finally:
            for hook in hooks:
                hook.remove()


def one_sweep(m: int) -> None:
    """Make a sweep and print the peak of the process from when the model is loaded."""
    lm = load("smollm2")
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew
    cmap, method = make(lm), CPE(m, SCALE)
    method.step(cmap, method.init(cmap, torch.Generator().manual_seed(0)))
    peaks = [
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    ]
    print(int(peaks[0].split()[1]) * 1024)


def peak(m: int) -> int:
    """Peak memory, in bytes, of a process that makes a sweep of m factors."""
    code = f"from adapters import one_sweep; one_sweep({m})"
    out = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        check=True,
        capture_output=True,
        text=True,
    )
    return int(out.stdout.split()[-1])


def main() -> None:
    """Measure."""
    cmap = make(load("smollm2"))
    method, draw = CPE(M, SCALE), torch.Generator().manual_seed(0)
    state = method.init(cmap, draw)
    V, U = state.V, state.V.new_zeros(M, cmap.d_target)
    U[:, 0] = 1
    multiply, flops = products(cmap, M, backward=True)
    jobs = {
        "products": multiply,
        "ours": lambda: method.step(cmap, state),
        "one at a time": lambda: [
            cmap.value_and_vjp(SCALE * V[i : i + 1], U[i : i + 1]) for i in range(FEW)
        ],
        "one at a time, plainly": lambda: plain_sweep(cmap, V[:FEW]),
    }
    times = in_turn(jobs, REPEATS, "sweeps", progress=False)
    alone = ("one at a time", "one at a time, plainly")
    times |= {name: [t * M / FEW for t in times[name]] for name in alone}
    median = {name: statistics.median(t) for name, t in times.items()}
    start = time.perf_counter()
    fit(cmap, CPE(M, SCALE, max_steps=20, tol=0.0), progress=False)
    result = {
        "environment": environment(),
        "map": {
            "prompt": PROMPT,
            "tokens": len(cmap.prompts.tokens[0]),
            "band": BAND,
            "target": TARGET,
            "m": M,
        },
        "seconds": times,
        "ratio": {name: median[name] / median["ours"] for name in alone},
        "of_products": needed(cmap, M) / median["ours"] / (flops / median["products"]),
        "seconds_of_twenty_sweeps": time.perf_counter() - start,
        "peak_bytes": {m: peak(m) for m in (64, 256)},
    }
    ratios = ", ".join(f"{name} × {value:.2f}" for name, value in result["ratio"].items())
    print(
        f"sweep {median['ours']:.2f} s; {ratios}; {result['of_products']:.0%} of the products' rate"
    )
    memory = ", ".join(f"m = {m}: {b / 2**20:.0f} MiB" for m, b in result["peak_bytes"].items())
    print(f"twenty sweeps {result['seconds_of_twenty_sweeps']:.0f} s; peak memory {memory}")
    (Path(__file__).parent / "results" / "adapters.json").write_text(
        json.dumps(result, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
