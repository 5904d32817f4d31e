"""Speed beside the machine's own matrix products of the same shapes, and the plain formulation.

Everything is measured in one process and in turn, so that a noisy machine is noisy to all alike;
medians are reported. Operations are those that the result needs, counted from the shapes
(`needed_flops`): work that a formulation does beyond them counts as time only.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from melbo.evaluation.scores import nll
from melbo.features.generate import Completion
from melbo.maps.calibrate import calibrate
from melbo.maps.residual import CausalMap
from melbo.maths.linalg import random_rows, unit
from melbo.maths.transcoder import fit_strengths
from melbo.methods import Exponential
from melbo.models.decoding.decode import continued, decode
from melbo.models.edits import Add
from melbo.models.language_model import LanguageModel
from melbo.models.text.prompts import pad_rows
from melbo.progress import track
from research.speed.flops import needed_flops, products, products_of_model, weights
from research.speed.plain import PlainFormulation

# length of the replies of `melbo.generate` unless told otherwise
_NEW_TOKENS = 48
# vectors that are decoded one at a time
_FEW = 4
_PLAIN, _PLAIN_16 = "plain", "plain, 16 at a time"

Jobs = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class SpeedRow:
    """One thing that was measured.

    Attributes:
        what: Its name.
        seconds: Duration of every repetition.
        flops: Operations that its result needs, where they are counted.
        of_products: Rate of those, as a share of the rate of the matrix products alone.
        versus: Duration of each other formulation, in multiples of ours.
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

    def line(self, threads: int) -> str:
        """All of it in a line of text.

        Args:
            threads: Number of CPU threads that it was measured with.
        """
        share = f"{self.of_products:5.0%} of its products' rate" if self.of_products else ""
        others = [f"{name} × {ratio:.3g}" for name, ratio in (self.versus or {}).items()]
        head = f"{threads} threads  {self.what:45} {self.median:8.3f} s"
        return f"{head}  {share:28} {'   '.join(others)}"


def measure_speed(
    cmap: CausalMap,
    num_factors: int = 128,
    repeats: int = 5,
    only: Sequence[str] = (),
    plain: bool = True,
    progress: bool = True,
) -> Iterator[SpeedRow]:
    """Measure fit, calibration, derivatives, generation and judging on a map of one prompt.

    Args:
        cmap: The map.
        num_factors: Number of directions m of a sweep.
        repeats: Number of repetitions of each measurement.
        only: Names of some of `PARTS`; all are measured if left out.
        plain: Whether to measure the plain formulation too, which takes most of the time.
        progress: Whether to draw bars.
    """
    for name, measure in PARTS.items():
        if not only or name in only:
            yield from measure(cmap, num_factors, repeats, plain, progress)


def in_turn(jobs: Jobs, repeats: int, what: str, progress: bool = True) -> dict[str, list[float]]:
    """Seconds of every job, by name, all jobs in turn after a round that does not count.

    Args:
        jobs: The jobs. Each is waited for on the GPU, where there is one.
        repeats: Number of rounds that count.
        what: Name on the progress bar.
        progress: Whether to draw it.
    """
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


def _sweep(
    cmap: CausalMap, m: int, repeats: int, plain: bool, progress: bool
) -> Iterator[SpeedRow]:
    """A sweep of the exponential fit; then one that steers only the tokens that are read."""
    scale = 0.2 * (cmap.source_norm or 1.0)
    method = Exponential(m, scale)
    draw = torch.Generator().manual_seed(0)
    state = method.init(cmap, draw)
    few = CausalMap.from_description(cmap.lm, {**cmap.describe(), "positions": "target"})
    few_state = method.init(few, draw)

    def uncompiled() -> None:
        with cmap.uncompiled():
            method.step(cmap, state)

    multiply, flops = products(cmap, m, backward=True)
    jobs: Jobs = {
        "products": multiply,
        "ours": lambda: method.step(cmap, state),
        "target only": lambda: method.step(few, few_state),
    }
    if cmap.compile:
        jobs["uncompiled"] = uncompiled
    if plain:
        one, several = PlainFormulation(cmap), PlainFormulation(cmap, batch=16)
        V, U = several.start(m, draw)
        jobs[_PLAIN] = lambda: one.sweep(V, U, scale)
        jobs[_PLAIN_16] = lambda: several.sweep(V, U, scale)
    times = in_turn(jobs, repeats, "sweeps", progress)
    target_only = times.pop("target only")
    needed = m * needed_flops(cmap, backward=True)
    rate = flops / statistics.median(times["products"])
    yield _row(f"a sweep of {m} directions", times, needed, rate)
    positions = few.placement.positions
    both = {"ours": target_only, "positions='all'": times["ours"]}
    yield _row(f"the same with positions={positions!r}", both)


def _fit(cmap: CausalMap, m: int, repeats: int, plain: bool, progress: bool) -> Iterator[SpeedRow]:
    """A fit from the start to what the published fit explains after ten sweeps (run once)."""
    if not plain:
        return
    method = Exponential(m, calibrate(cmap, progress=progress).scale)
    published = PlainFormulation(cmap, batch=16)
    start = time.perf_counter()
    V, U = published.start(m, torch.Generator().manual_seed(0))
    with track(method.max_steps, "published fit", progress) as bar:
        for _ in range(method.max_steps):
            V, U = published.sweep(V, U, method.scale)
            bar.update()
    times = {_PLAIN_16: [time.perf_counter() - start], "ours": []}
    b = (U * cmap.value(method.scale * V)).sum(-1)
    goal = fit_strengths(V, U, b, "exponential", nonnegative=True).explained
    for _ in range(repeats):
        start = time.perf_counter()
        state, sweeps, explained = method.init(cmap, torch.Generator().manual_seed(0)), 0, 0.0
        while explained < goal and sweeps < method.max_steps:
            state, record = method.step(cmap, state)
            sweeps, explained = sweeps + 1, record["explained"]
        times["ours"].append(time.perf_counter() - start)
    reached = "reached" if explained >= goal else "not reached"
    yield _row(
        f"fit to bᵀK⁻¹b = {goal:.3g}, {reached} in {sweeps} sweeps for {method.max_steps}", times
    )


def _calibration(
    cmap: CausalMap, m: int, repeats: int, plain: bool, progress: bool
) -> Iterator[SpeedRow]:
    """Calibration to the same tolerance on the same directions.

    Of the plain formulation that takes one direction at a time, a single evaluation is timed.
    """
    jobs: Jobs = {"ours": lambda: calibrate(cmap, progress=False)}
    if plain:
        directions = random_rows(30, cmap.d_source, torch.Generator().manual_seed(0))
        one, several = PlainFormulation(cmap), PlainFormulation(cmap, batch=16)
        scale, evaluations = several.calibrate(directions)
        jobs[_PLAIN_16] = lambda: several.calibrate(directions)
        jobs[_PLAIN] = lambda: one.ratio(scale, directions)
    times = in_turn(jobs, repeats, "calibration", progress)
    if plain:
        times[_PLAIN] = [evaluations * t for t in times[_PLAIN]]
    yield _row("calibration", times)


def _derivatives(
    cmap: CausalMap, m: int, repeats: int, plain: bool, progress: bool
) -> Iterator[SpeedRow]:
    """Derivatives at zero of 32 directions.

    The matrix products beside them are those of a forward pass, for each pass over the blocks that
    a row needs.
    """
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
    theirs: Jobs = {}
    if plain:
        one, zero = PlainFormulation(cmap), torch.zeros_like(V)
        theirs = {
            "jvp": lambda: one.jvp(V),
            "vjp": lambda: one.value_and_vjp(zero, U),
            "hvp": lambda: one.hvp(U, V),
        }
    for name, (passes, oracle) in ours.items():
        jobs: Jobs = {"products": multiply, "ours": oracle}
        if name in theirs:
            jobs[_PLAIN] = theirs[name]
        times = in_turn(jobs, repeats, name, progress)
        needed = passes * len(V) * needed_flops(cmap, backward=False)
        rate = flops / statistics.median(times["products"])
        yield _row(f"{name}, 32 directions", times, needed, rate)


def _generation(
    cmap: CausalMap, m: int, repeats: int, plain: bool, progress: bool
) -> Iterator[SpeedRow]:
    """Replies of 64 vectors to one prompt, beside unsteered ones and one vector at a time."""
    lm, prompt = cmap.lm, cmap.prompts.tokens[0]
    V = random_rows(64, cmap.d_source, torch.Generator().manual_seed(0))
    V = V * 0.1 * (cmap.source_norm or 1.0)
    prompts = [prompt] * len(V)
    ids, mask = pad_rows(prompts, lm.pad, side="left")
    endless: Any = _Endless(lm)

    def steered(prompts: list[tuple[int, ...]], V: torch.Tensor) -> None:
        decode(endless, prompts, Add(cmap.source, V), _NEW_TOKENS, progress=False)

    def one_at_a_time() -> None:
        for v in V[:_FEW]:
            steered([prompt], v)

    multiply, flops = products_of_model(lm, len(V))
    jobs: Jobs = {
        "products": multiply,
        "ours": lambda: steered(prompts, V),
        "unsteered": lambda: continued(endless, ids, mask, _NEW_TOKENS),
        "one at a time": one_at_a_time,
    }
    times = in_turn(jobs, repeats, "generation", progress)
    times["one at a time"] = [t * len(V) / _FEW for t in times["one at a time"]]
    every, unembedding = _sizes(lm)
    read = len(prompt) * (sum(every[: cmap.source]) + len(V) * sum(every[cmap.source :]))
    written = len(V) * (unembedding * _NEW_TOKENS + sum(every) * (_NEW_TOKENS - 1))
    what = f"generation, 64 vectors × {_NEW_TOKENS} tokens"
    rate = flops / statistics.median(times["products"])
    yield _row(what, times, 2 * (read + written), rate)


def _judging(
    cmap: CausalMap, m: int, repeats: int, plain: bool, progress: bool
) -> Iterator[SpeedRow]:
    """Likelihood of 64 replies to one prompt, which is read once, beside one reply at a time."""
    lm, prompts = cmap.lm, replace(cmap.prompts, texts=("",), tokens=cmap.prompts.tokens[:1])
    draw = torch.Generator().manual_seed(0)
    said = torch.randint(lm.model.config.vocab_size, (64, _NEW_TOKENS), generator=draw).tolist()
    replies = [Completion("feature", i, 0, "", "", tuple(said[i])) for i in range(len(said))]

    def one_at_a_time() -> None:
        for reply in replies[:_FEW]:
            nll(lm, prompts, [reply], progress=False)

    multiply, flops = products_of_model(lm, 32 * _NEW_TOKENS)
    jobs: Jobs = {
        "products": multiply,
        "ours": lambda: nll(lm, prompts, replies, progress=False),
        "one at a time": one_at_a_time,
    }
    times = in_turn(jobs, repeats, "judging", progress)
    times["one at a time"] = [t * len(replies) / _FEW for t in times["one at a time"]]
    every, unembedding = _sizes(lm)
    # the last token of a reply is not read, and the first is foretold by the prompt
    read = len(prompts.tokens[0]) + len(replies) * (_NEW_TOKENS - 1)
    needed = 2 * (read * sum(every) + len(replies) * _NEW_TOKENS * unembedding)
    rate = flops / statistics.median(times["products"])
    yield _row(f"judging, 64 replies × {_NEW_TOKENS} tokens", times, needed, rate)


def _sizes(lm: LanguageModel) -> tuple[list[float], int]:
    """Multiply–adds a token of every block, and of the unembedding."""
    every = [sum(weights(block, lm.config).values()) for block in lm.blocks]
    return every, lm.model.get_output_embeddings().weight.numel()


#: Parts that can be measured, by name.
PARTS = {
    "sweep": _sweep,
    "fit": _fit,
    "calibration": _calibration,
    "derivatives": _derivatives,
    "generation": _generation,
    "judging": _judging,
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
) -> SpeedRow:
    """A row of the table.

    Args:
        what: Name of what was measured.
        times: Seconds of each formulation; ``"ours"`` is among them.
        needed: Operations that the result needs.
        rate: Operations a second of the matrix products alone.
    """
    ours = statistics.median(times["ours"])
    share = needed / ours / rate if needed and rate else None
    others = {k: t for k, t in times.items() if k not in ("ours", "products")}
    versus = {name: statistics.median(t) / ours for name, t in others.items()}
    return SpeedRow(what, times["ours"], needed, share, versus or None)
