"""How fast: what is achieved, beside the machine's own matrix products of the same shapes and beside the plain formulation.

Everything is measured in one process and in turn, so that a noisy machine is noisy to all alike; medians are reported. The count of operations
is what the result needs, from the shapes (`needed_flops`): work that a formulation does beyond that counts as time only.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from melbo.maps.calibrate import calibrate
from melbo.maps.residual import CausalMap
from melbo.maths.linalg import random_rows, unit
from melbo.maths.transcoder import fit_strengths
from melbo.methods import Exponential
from melbo.models.decode import continued, decode
from melbo.models.edits import Add
from melbo.models.prompts import pad_rows
from melbo.progress import track
from research.speed.plain import Reference

_NEW_TOKENS = 48  # what `melbo.generate` writes unless told otherwise
_FEW = 4  # vectors that are decoded one at a time


@dataclass(frozen=True)
class Row:
    """One thing that was measured.

    Attributes:
        what: Its name.
        seconds: Every time it took.
        flops: Operations that its result needs, where they are counted.
        of_products: Rate of those, as a share of the rate of the matrix products alone.
        versus: What it is compared with, and how many times as long that takes.
    """

    what: str
    seconds: list[float]
    flops: float | None = None
    of_products: float | None = None
    versus: dict[str, float] | None = None

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return statistics.median(self.seconds)

    def describe(self) -> dict[str, Any]:
        """All of it, JSON-able."""
        rate = self.flops / self.median if self.flops else None
        return {**vars(self), "median_seconds": self.median, "flops_per_second": rate}


def weights(block: nn.Module, config: Any) -> dict[str, float]:
    """Multiply–adds a token of every matrix in a block; of a mixture's experts, as many as a token visits."""
    visited = getattr(config, "num_experts_per_tok", None) or 1
    matrices = {name: p for name, p in block.named_parameters() if p.ndim > 1}
    return {
        name: p.numel() * (visited / len(p) if p.ndim == 3 else 1) for name, p in matrices.items()
    }


def needed_flops(cmap: CausalMap, backward: bool) -> float:
    """Operations that one direction needs on all prompts, forward or forward and backward.

    A matrix of w entries takes 2w operations a token, and 2w more for the gradient of its input (weights have none). Attention takes
    4·heads·(width of a head) for each pair of a token and one it sees, and twice that backward. The last block needs keys and values
    (matrices called k_proj, v_proj, or one that holds both) at every token and the rest at the tokens that are read; with
    ``positions="target"`` every block needs those tokens alone. Norms, activations and other element-wise work count as nothing.
    """
    config = cmap.lm.config
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or cmap.lm.width // heads)
    read, last = cmap.placement.target_tokens, cmap.target - 1
    total = 0.0
    for tokens in map(len, cmap.prompts.tokens):
        few_pairs = read * tokens - read * (read - 1) / 2
        for index in range(cmap.source, cmap.target):
            few = cmap.placement.positions == "target" or index == last
            pairs = few_pairs if few else tokens * (tokens + 1) / 2
            total += (3 if backward else 1) * 4 * width * pairs
            for name, size in weights(cmap.lm.blocks[index], config).items():
                everywhere = cmap.placement.positions == "all" and (
                    index != last or _holds_keys(name)
                )
                total += (4 if backward else 2) * size * (tokens if everywhere else read)
    return total


def products(cmap: CausalMap, k: int, backward: bool) -> tuple[Callable[[], None], float]:
    """The matrix products of one pass and nothing else, and their operations; a pass is what the map cuts ``k`` directions into."""
    piece, chunk = next(cmap.chunks(k))
    rows = chunk.stop - chunk.start
    tokens, read = rows * piece.cost, rows * cmap.placement.target_tokens
    work: list[tuple[Tensor, Tensor, Tensor]] = []
    flops = 0.0
    weight = next(cmap.lm.blocks[cmap.source].parameters())
    random = cache(lambda *shape: torch.randn(*shape, dtype=weight.dtype, device=weight.device))
    for index in range(cmap.source, cmap.target):
        for name, p in cmap.lm.blocks[index].named_parameters():
            if p.ndim == 2:
                at = tokens if index != cmap.target - 1 or _holds_keys(name) else read
                work.append((p, random(at, p.shape[1]), random(at, p.shape[0])))
                flops += (4 if backward else 2) * p.numel() * at

    def run() -> None:
        with torch.no_grad():
            for p, x, g in work:
                nn.functional.linear(x, p)
                if backward:
                    g @ p

    return run, flops


def measure_speed(
    cmap: CausalMap,
    num_factors: int = 128,
    repeats: int = 5,
    only: Sequence[str] = (),
    reference: bool = True,
    progress: bool = True,
) -> Iterator[Row]:
    """Measure fit, calibration, derivatives and generation on a map of one prompt.

    Args:
        cmap: The map.
        num_factors: m of the sweeps.
        repeats: How often each thing is measured.
        only: Which of `PARTS`; all of them if left out.
        reference: Measure the plain formulation too, which takes most of the time.
        progress: Draw bars.
    """
    for name, measure in PARTS.items():
        if not only or name in only:
            yield from measure(cmap, num_factors, repeats, reference, progress)


def in_turn(
    jobs: dict[str, Callable[[], Any]], repeats: int, what: str, progress: bool = True
) -> dict[str, list[float]]:
    """Seconds of every job, one after the other ``repeats`` times, after a round that does not count. Waits for the GPU where there is one."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    with track((repeats + 1) * len(jobs), what, progress) as bar:
        for i in range(repeats + 1):
            for name, job in jobs.items():
                start = time.perf_counter()
                job()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                if i:
                    times[name].append(time.perf_counter() - start)
                bar.update()
    return times


def _sweep(cmap: CausalMap, m: int, repeats: int, reference: bool, progress: bool) -> Iterator[Row]:
    """A sweep of the exponential fit; then the same, steered at the tokens that are read only."""
    scale = 0.2 * (cmap.source_norm or 1.0)
    method = Exponential(m, scale)
    draw = torch.Generator().manual_seed(0)
    state = method.init(cmap, draw)
    few = CausalMap.from_description(cmap.lm, {**cmap.describe(), "positions": "target"})
    few_state = method.init(few, draw)

    def ours() -> None:
        method.step(cmap, state)

    def uncompiled() -> None:
        with cmap.uncompiled():
            ours()

    multiply, flops = products(cmap, m, backward=True)
    jobs: dict[str, Callable[[], Any]] = {
        "products": multiply,
        "ours": ours,
        "target only": lambda: method.step(few, few_state),
    }
    if cmap.compile:
        jobs["uncompiled"] = uncompiled
    if reference:
        plain, several = Reference(cmap), Reference(cmap, batch=16)
        V, U = several.start(m, draw)
        jobs["reference"] = lambda: plain.sweep(V, U, scale)
        jobs["reference, 16 at a time"] = lambda: several.sweep(V, U, scale)
    times = in_turn(jobs, repeats, "sweeps", progress)
    target_only = times.pop("target only")
    needed = m * needed_flops(cmap, backward=True)
    yield _row(
        f"a sweep of {m} directions", times, needed, flops / statistics.median(times["products"])
    )
    yield _row(
        f"the same with positions={few.placement.positions!r}",
        {"ours": target_only, "positions='all'": times["ours"]},
    )


def _fit(cmap: CausalMap, m: int, repeats: int, reference: bool, progress: bool) -> Iterator[Row]:
    """From the start to the explained amount that the published fit ends at after ten sweeps (which are run once)."""
    if not reference:
        return
    method, plain = (
        Exponential(m, calibrate(cmap, progress=progress).scale),
        Reference(cmap, batch=16),
    )
    begun = time.perf_counter()
    V, U = plain.start(m, torch.Generator().manual_seed(0))
    with track(method.max_steps, "published fit", progress) as bar:
        for _ in range(method.max_steps):
            V, U = plain.sweep(V, U, method.scale)
            bar.update()
    times = {"reference, 16 at a time": [time.perf_counter() - begun], "ours": []}
    goal = fit_strengths(V, U, (U * cmap.value(method.scale * V)).sum(-1), "exponential").explained
    for _ in range(repeats):
        begun = time.perf_counter()
        state, sweeps, explained = method.init(cmap, torch.Generator().manual_seed(0)), 0, 0.0
        while explained < goal and sweeps < method.max_steps:
            state, record = method.step(cmap, state)
            sweeps, explained = sweeps + 1, record["explained"]
        times["ours"].append(time.perf_counter() - begun)
    reached = "reached" if explained >= goal else "not reached"
    yield _row(
        f"fit to bᵀK⁻¹b = {goal:.3g}, {reached} in {sweeps} sweeps for {method.max_steps}", times
    )


def _calibration(
    cmap: CausalMap, m: int, repeats: int, reference: bool, progress: bool
) -> Iterator[Row]:
    """To the same tolerance on the same directions; of the reference one direction at a time, a single evaluation is timed."""
    jobs: dict[str, Callable[[], Any]] = {"ours": lambda: calibrate(cmap, progress=False)}
    if reference:
        directions = random_rows(30, cmap.d_source, torch.Generator().manual_seed(0))
        plain, several = Reference(cmap), Reference(cmap, batch=16)
        scale, evaluations = several.calibrate(directions)
        jobs["reference, 16 at a time"] = lambda: several.calibrate(directions)
        jobs["reference"] = lambda: plain.ratio(scale, directions)
    times = in_turn(jobs, repeats, "calibration", progress)
    if reference:
        times["reference"] = [evaluations * t for t in times["reference"]]
    yield _row("calibration", times)


def _derivatives(
    cmap: CausalMap, m: int, repeats: int, reference: bool, progress: bool
) -> Iterator[Row]:
    """Derivatives at zero of 32 directions; their products are those of a forward pass for each pass over the blocks that a row needs."""
    V = random_rows(32, cmap.d_source, torch.Generator().manual_seed(0)).to(cmap.device, cmap.dtype)
    U = unit(cmap.value(V))
    multiply, flops = products(cmap, len(V), backward=False)
    # passes of a row: along v; back along u; along v and back, and both; along v, along w, and both
    ours: dict[str, tuple[int, Callable[[], Any]]] = {
        "jvp": (1, lambda: cmap.jvp(V)),
        "vjp": (1, lambda: cmap.vjp(U)),
        "hvp": (3, lambda: cmap.hvp(U, V)),
        "bilinear": (3, lambda: cmap.bilinear(V, V)),
    }
    theirs: dict[str, Callable[[], Any]] = {}
    if reference:
        plain, zero = Reference(cmap), torch.zeros_like(V)
        theirs = {
            "jvp": lambda: plain.jvp(V),
            "vjp": lambda: plain.value_and_vjp(zero, U),
            "hvp": lambda: plain.hvp(U, V),
        }
    for name, (passes, oracle) in ours.items():
        jobs: dict[str, Callable[[], Any]] = {"products": multiply, "ours": oracle}
        if name in theirs:
            jobs["reference"] = theirs[name]
        times = in_turn(jobs, repeats, name, progress)
        needed = passes * len(V) * needed_flops(cmap, backward=False)
        yield _row(
            f"{name}, 32 directions", times, needed, flops / statistics.median(times["products"])
        )


def _generation(
    cmap: CausalMap, m: int, repeats: int, reference: bool, progress: bool
) -> Iterator[Row]:
    """64 vectors on one prompt, beside the model's own unsteered generation of as many rows and beside one vector at a time."""
    lm, prompt = cmap.lm, cmap.prompts.tokens[0]
    V = (
        random_rows(64, cmap.d_source, torch.Generator().manual_seed(0))
        * 0.1
        * (cmap.source_norm or 1.0)
    )
    place = Add(cmap.source, V)
    ids, mask = pad_rows([prompt] * len(V), lm.pad, side="left")
    endless: Any = _Endless(lm)
    times = in_turn(
        {
            "ours": lambda: decode(endless, [prompt] * len(V), place, _NEW_TOKENS, progress=False),
            "unsteered": lambda: continued(endless, ids, mask, _NEW_TOKENS),
            "one at a time": lambda: [
                decode(endless, [prompt], Add(cmap.source, v), _NEW_TOKENS, progress=False)
                for v in V[:_FEW]
            ],
        },
        repeats,
        "generation",
        progress,
    )
    times["one at a time"] = [t * len(V) / _FEW for t in times["one at a time"]]
    every = sum(sum(weights(block, lm.config).values()) for block in lm.blocks)
    before = sum(sum(weights(block, lm.config).values()) for block in lm.blocks[: cmap.source])
    head = lm.model.get_output_embeddings().weight.numel()
    prefill = len(prompt) * (before + len(V) * (every - before))
    needed = 2 * (prefill + len(V) * (head * _NEW_TOKENS + every * (_NEW_TOKENS - 1)))
    yield _row(f"generation, 64 vectors × {_NEW_TOKENS} tokens", times, needed)


#: What can be measured.
PARTS = {
    "sweep": _sweep,
    "fit": _fit,
    "calibration": _calibration,
    "derivatives": _derivatives,
    "generation": _generation,
}


class _Endless:
    """A model whose replies do not end, so that every formulation writes as many tokens."""

    eos: tuple[int, ...] = ()

    def __init__(self, lm: Any) -> None:
        self._lm = lm

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lm, name)


def _row(
    what: str, times: dict[str, list[float]], needed: float | None = None, rate: float | None = None
) -> Row:
    ours = statistics.median(times["ours"])
    share = needed / ours / rate if needed and rate else None
    versus = {
        name: statistics.median(t) / ours
        for name, t in times.items()
        if name not in ("ours", "products")
    }
    return Row(what, times["ours"], needed, share, versus or None)


def _holds_keys(name: str) -> bool:
    """Whether a matrix of this name makes keys or values."""
    return any(
        part in name
        for part in ("k_proj", "v_proj", "qkv", "query_key_value", "c_attn", "Wqkv", "in_proj")
    )
