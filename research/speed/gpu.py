"""A fit of a 7B model on a GPU: random weights of that shape, in bfloat16 and float32.

512 directions, layers 10 → 20, 27 tokens, ten sweeps (docs/method.md §10). Values of random weights
mean nothing; the work is that of real ones. The published code took 37.5 s on an H100 in float32.
``python -m research.speed.gpu`` prints a table and writes ``research/results/speed/gpu.json``;
``--dry-run`` runs the same on a CPU, with a model of a few thousand weights, and writes nothing.
"""

import argparse
import statistics
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from melbo import CausalMap, Exponential, LanguageModel, Prompts, fit
from melbo.records import environment
from research.speed.flops import needed_flops, products
from research.speed.measure import in_turn
from research.speed.results import save

SOURCE, TARGET, TOKENS = 10, 20, 27


@dataclass(frozen=True)
class Job:
    """Sizes of a measurement.

    Attributes:
        device: Device that it runs on.
        shape: Settings of `LlamaConfig`.
        m: Number of directions.
        sweeps: Number of sweeps of a fit.
        side: Side of the square matrices whose product is timed.
        repeats: Number of repetitions.
    """

    device: str
    shape: dict[str, int]
    m: int
    sweeps: int
    side: int
    repeats: int


def _shape(width: int, inner: int, heads: int) -> dict[str, int]:
    """Settings of a model up to a little beyond the target; the rest of it would not run."""
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": 22,
        "num_attention_heads": heads,
        "vocab_size": 1024,
    }


SEVEN_B = Job("cuda", _shape(4096, 11008, 32), m=512, sweeps=10, side=8192, repeats=5)
DRY = Job("cpu", _shape(64, 172, 4), m=4, sweeps=2, side=64, repeats=1)


def random_model(shape: dict[str, int], dtype: torch.dtype, device: str) -> LanguageModel:
    """A model with random weights.

    Args:
        shape: Settings of `LlamaConfig`.
        dtype: Type of its weights.
        device: Device that it is on.
    """
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**shape)).to(dtype)  # type: ignore[arg-type] # in transformers, to(dtype) is not typed
    return LanguageModel(model, None, name="random weights of 7B shape")


def matrix_rate(dtype: torch.dtype, job: Job) -> float:
    """Operations a second of a large square product of random matrices."""
    side = job.side
    a, b = (torch.randn(side, side, dtype=dtype, device=job.device) for _ in range(2))
    times = in_turn({"product": lambda: a @ b}, 20, "measuring", progress=False)["product"]
    return float(2 * side**3 / statistics.median(times))


def measure(job: Job, dtype: torch.dtype, compile: bool) -> dict[str, Any]:
    """Time, rate and memory of a fit.

    Args:
        job: The sizes.
        dtype: Type to compute in.
        compile: Whether blocks are compiled.
    """
    lm = random_model(job.shape, dtype, job.device)
    prompts = Prompts(("random tokens",), (tuple(range(1, TOKENS + 1)),))
    cmap = CausalMap(lm, prompts, SOURCE, TARGET, compile=compile)
    method = Exponential(job.m, 0.1 * (cmap.source_norm or 1.0), max_steps=job.sweeps, tol=0.0)
    multiply, flops = products(cmap, job.m, backward=True)
    # the first fit compiles
    first = fit(cmap, method, progress=False)
    jobs = {"fit": lambda: fit(cmap, method, progress=False), "products": multiply}
    times = in_turn(jobs, job.repeats, "measuring", progress=False)
    own = flops / statistics.median(times["products"])
    needed = needed_flops(cmap, backward=True) * job.m * job.sweeps
    rate = needed / statistics.median(times["fit"])
    square = matrix_rate(dtype, job)
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "compile": compile,
        "seconds": times["fit"],
        "median_seconds": statistics.median(times["fit"]),
        "first_seconds": first.stats["seconds"],
        "flops_per_second": rate,
        "of_square_products": rate / square,
        "of_own_products": rate / own,
        "square_products_flops_per_second": square,
        "tokens_per_pass": cmap.tokens_per_pass,
        "peak_bytes": torch.cuda.max_memory_allocated() if job.device == "cuda" else None,
    }


def main(dry_run: bool) -> list[dict[str, Any]]:
    """Measure each precision, bfloat16 compiled too."""
    job = DRY if dry_run else SEVEN_B
    torch.set_float32_matmul_precision("highest")
    rows = []
    for dtype, compile in ((torch.bfloat16, False), (torch.bfloat16, True), (torch.float32, False)):
        if dry_run and compile:
            continue
        row = measure(job, dtype, compile)
        rows.append(row)
        print(
            f"{row['dtype']:9} compile={compile!s:5}  {row['median_seconds']:7.2f} s  "
            f"{row['flops_per_second']:.3g} FLOP/s  "
            f"{row['of_square_products']:.0%} of square products, "
            f"{row['of_own_products']:.0%} of its own",
            flush=True,
        )
    if not dry_run:
        about = {"environment": environment(), **asdict(job), "tokens": TOKENS}
        save("gpu", {**about, "rows": rows})
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="Run on a CPU, with a tiny model; write nothing."
    )
    main(parser.parse_args().dry_run)
