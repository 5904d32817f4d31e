"""A fit of a 7B model on a GPU: random weights of that shape, 10 → 20, 512 directions, 27 tokens, ten sweeps, bfloat16 (METHOD §11).

python benchmarks/gpu.py              prints a table and writes benchmarks/results/gpu.json
python benchmarks/gpu.py --dry-run    the same on a CPU, with a model of a few thousand weights, and writes nothing

The published code took 37.5 s on an H100 in float32. Values of random weights mean nothing; the work is that of real ones.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from melbo import CausalMap, Exponential, LanguageModel, Prompts, fit
from melbo.records import environment
from research.speed.measure import in_turn, needed_flops, products

SEVEN_B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "vocab_size": 1024,
}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 22,
    "num_attention_heads": 4,
    "vocab_size": 1024,
}
SOURCE, TARGET, TOKENS = 10, 20, 27


def random_model(shape: dict, dtype: torch.dtype, device: str) -> LanguageModel:
    """Blocks of the given shape up to a little beyond the target; the rest of the model would not run."""
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**shape)).to(dtype)
    return LanguageModel(model, None, name="random weights of 7B shape")


def matrix_rate(dtype: torch.dtype, device: str, side: int) -> float:
    """Operations a second of a large square product, random data."""
    a, b = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    return (
        2
        * side**3
        / statistics.median(
            in_turn({"product": lambda: a @ b}, 20, "measuring", progress=False)["product"]
        )
    )


def measure(
    dtype: torch.dtype,
    compile: bool,
    *,
    device: str,
    shape: dict,
    m: int,
    sweeps: int,
    side: int,
    repeats: int,
) -> dict:
    """Time, rate and memory of a fit."""
    lm = random_model(shape, dtype, device)
    prompts = Prompts(("random tokens",), (tuple(range(1, TOKENS + 1)),))
    cmap = CausalMap(lm, prompts, SOURCE, TARGET, compile=compile)
    method = Exponential(m, 0.1 * cmap.source_norm, max_steps=sweeps, tol=0.0)
    multiply, flops = products(cmap, m, backward=True)
    found = fit(cmap, method, progress=False)  # compiles
    times = in_turn(
        {"fit": lambda: fit(cmap, method, progress=False), "products": multiply},
        repeats,
        "measuring",
        progress=False,
    )
    own = flops / statistics.median(times["products"])
    needed = needed_flops(cmap, backward=True) * m * sweeps
    rate = needed / statistics.median(times["fit"])
    square = matrix_rate(dtype, device, side)
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "compile": compile,
        "seconds": times["fit"],
        "median_seconds": statistics.median(times["fit"]),
        "first_seconds": found.stats["seconds"],
        "flops_per_second": rate,
        "of_square_products": rate / square,
        "of_own_products": rate / own,
        "square_products_flops_per_second": square,
        "tokens_per_pass": cmap.tokens_per_pass,
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
    }


def main(dry_run: bool) -> list[dict]:
    """Measure each precision, plain and compiled."""
    if dry_run:
        job = {"device": "cpu", "shape": TINY, "m": 4, "sweeps": 2, "side": 64, "repeats": 1}
    else:
        job = {
            "device": "cuda",
            "shape": SEVEN_B,
            "m": 512,
            "sweeps": 10,
            "side": 8192,
            "repeats": 5,
        }
    torch.set_float32_matmul_precision("highest")
    rows = []
    for dtype, compile in ((torch.bfloat16, False), (torch.bfloat16, True), (torch.float32, False)):
        if dry_run and compile:
            continue
        rows.append(measure(dtype, compile, **job))
        print(
            "{dtype:9} compile={compile!s:5}  {median_seconds:7.2f} s  {flops_per_second:.3g} FLOP/s  {of_square_products:.0%} of square products, "
            "{of_own_products:.0%} of its own".format(**rows[-1]),
            flush=True,
        )
    if not dry_run:
        out = Path(__file__).parent / "results" / "gpu.json"
        out.write_text(
            json.dumps(
                {"environment": environment(), **job, "tokens": TOKENS, "rows": rows}, indent=1
            )
            + "\n"
        )
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="on a CPU, with a tiny model; writes nothing"
    )
    main(parser.parse_args().dry_run)
