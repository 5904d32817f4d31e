"""Cost of a sweep of CPE on the bundled model, beside one factor at a time and matrix products.

``python -m research.speed.adapters`` prints the ratios and writes
``research/results/speed/adapters.json``. One at a time is measured twice: by this library, and
plainly, as hooks on the model's own forward pass, which runs every block and the unembedding.
"""

import statistics
import time

import torch
from torch import Tensor

from melbo import CPE, AdapterMap, LanguageModel, Prompts, fit, load
from melbo.models.weights.low_rank import pairs
from melbo.records import environment
from research.speed.flops import needed_flops, products, weights
from research.speed.measure import Jobs, in_turn
from research.speed.results import forget_peak, peak_of, print_peak, save

PROMPT, BAND, TARGET, SCALE = "Tell me a story", (8, 13), 20, 2.2
M, FEW, REPEATS = 64, 8, 7
ONE, PLAIN = "one at a time", "one at a time, plainly"


def make(lm: LanguageModel) -> AdapterMap:
    """The map of adapters."""
    return AdapterMap(lm, Prompts.chat(lm, [PROMPT]), BAND, TARGET, compile=True)


def needed(cmap: AdapterMap, m: int) -> float:
    """Operations of a sweep of m factors.

    In the first block only what follows its edited matrix differs from factor to factor, and has a
    gradient.
    """
    config, tokens = cmap.lm.config, len(cmap.prompts.tokens[0])
    heads = config.num_attention_heads
    block = cmap.lm.blocks[cmap.source]
    attention = sum(size for name, size in weights(block, config).items() if "attn" in name)
    seen = 4 * heads * (config.hidden_size // heads) * tokens * (tokens + 1) / 2
    in_vain = m * (4 * attention * tokens + 3 * seen) - (2 * attention * tokens + seen)
    return float(m * needed_flops(cmap, backward=True) - in_vain)


def plain_sweep(cmap: AdapterMap, V: Tensor) -> None:
    """Value and gradient of one factor after the other, by the model's own passes."""
    lm, ids = cmap.lm, torch.tensor([cmap.prompts.tokens[0]])

    def read() -> Tensor:
        last: Tensor = lm.model(ids, output_hidden_states=True).hidden_states[TARGET][0, -3:]
        return last

    with torch.no_grad():
        base = read()
    for v in V:
        of_sites = pairs(cmap.sites, v[None], torch.tensor([SCALE]))
        edits = [t[0].requires_grad_() for pair in of_sites for t in pair]
        hooks = [
            lm.model.get_submodule(site.name).register_forward_hook(
                lambda module, args, out, a=a, b=b: out + (args[0] @ a)[..., None] * b
            )
            for site, a, b in zip(cmap.sites, edits[::2], edits[1::2], strict=True)
        ]
        try:
            torch.autograd.grad((read() - base).mean(0).norm(), edits)
        finally:
            for hook in hooks:
                hook.remove()


def one_sweep(m: int) -> None:
    """Make a sweep of m factors and print the peak of the process since the model was loaded."""
    lm = load("smollm2")
    forget_peak()
    cmap, method = make(lm), CPE(m, SCALE)
    method.step(cmap, method.init(cmap, torch.Generator().manual_seed(0)))
    print_peak()


def main() -> None:
    """Measure."""
    cmap = make(load("smollm2"))
    method, draw = CPE(M, SCALE), torch.Generator().manual_seed(0)
    state = method.init(cmap, draw)
    V, U = state.V, state.V.new_zeros(M, cmap.d_target)
    U[:, 0] = 1
    multiply, flops = products(cmap, M, backward=True)

    def one_at_a_time() -> None:
        for v, u in zip(V[:FEW], U[:FEW], strict=True):
            cmap.value_and_vjp(SCALE * v[None], u[None])

    jobs: Jobs = {
        "products": multiply,
        "ours": lambda: method.step(cmap, state),
        ONE: one_at_a_time,
        PLAIN: lambda: plain_sweep(cmap, V[:FEW]),
    }
    times = in_turn(jobs, REPEATS, "sweeps", progress=False)
    times |= {name: [t * M / FEW for t in times[name]] for name in (ONE, PLAIN)}
    median = {name: statistics.median(t) for name, t in times.items()}
    ratio = {name: median[name] / median["ours"] for name in (ONE, PLAIN)}
    share = needed(cmap, M) / median["ours"] / (flops / median["products"])
    start = time.perf_counter()
    fit(cmap, CPE(M, SCALE, max_steps=20, tol=0.0), progress=False)
    twenty = time.perf_counter() - start
    code = f"from {__package__}.adapters import one_sweep; one_sweep({{}})"
    peaks = {m: peak_of(code.format(m)) for m in (64, 256)}
    about = {"prompt": PROMPT, "tokens": len(cmap.prompts.tokens[0]), "band": BAND}
    result = {
        "environment": environment(),
        "map": {**about, "target": TARGET, "m": M},
        "seconds": times,
        "ratio": ratio,
        "of_products": share,
        "seconds_of_twenty_sweeps": twenty,
        "peak_bytes": peaks,
    }
    ratios = ", ".join(f"{name} × {value:.2f}" for name, value in ratio.items())
    print(f"sweep {median['ours']:.2f} s; {ratios}; {share:.0%} of the products' rate")
    memory = ", ".join(f"m = {m}: {b / 2**20:.0f} MiB" for m, b in peaks.items())
    print(f"twenty sweeps {twenty:.0f} s; peak memory {memory}")
    save("adapters", result)


if __name__ == "__main__":
    main()
