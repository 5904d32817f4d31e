"""Work that the exponential method needs: starts, orders of update, stopping, subsets, warm starts.

``python -m research.speed.sweeps [GROUP …] [--quick] [--seeds 0 1]`` prints a table and writes
``research/results/speed/sweeps.json`` (bundled model, half an hour on one core). Work is counted as
`research.speed.sweep_variants` has it, the start and the last recomputation of U and α included.
Rows ``at`` hold what a fit that ended after so many sweeps would return, rows ``sweep`` the
orthonormal factors that each sweep evaluated. Prompts have an empty system message: 21 tokens for
37, the same work.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from melbo import CausalMap, Exponential, MelboError, Prompts, load
from melbo.maths.linalg import complete, orthogonalise, random_rows, unit
from melbo.maths.transcoder import Factors, fit_strengths
from melbo.methods.exponential import _State as State
from melbo.records import environment
from research.speed.results import RESULTS, save
from research.speed.sweep_variants import Blocks, Counted, Jacobi, Started

SCALE = 22.37
PROMPTS = (
    "Tell me how to bake a cake",
    "What should I do this weekend?",
    "Write a short note to my neighbour.",
    "Why is the sky blue?",
    "Sort these numbers: 4, 1, 9.",
    "I feel sad today.",
    "Translate 'good morning' into French.",
    "Who wrote Hamlet?",
)
OUT = RESULTS / "sweeps.json"

Figures = dict[str, Any]


def tame(factors: Factors) -> dict[str, float]:
    """Explained amount and mean effect without blow-ups.

    ``ordinary`` is what is explained without any factor above twice the median effect, a few of
    which can outweigh all others; ``overlap`` is the mean |cos| between source directions.
    """

    def explained(keep: Tensor) -> float:
        V, U = factors.V[keep], factors.U[keep]
        return round(fit_strengths(V, U, b[keep], "exponential", nonnegative=True).explained, 1)

    b = factors.b
    keep = b < 5 * b.median()
    m = len(b)
    cosines = (factors.V @ factors.V.T).abs().sum() - m
    return {
        "explained": explained(keep),
        "ordinary": explained(b < 2 * b.median()),
        "effect": round(b[keep].mean().item(), 2),
        "median": round(b.median().item(), 2),
        "largest": round(b.max().item(), 1),
        "blow_ups": int((~keep).sum()),
        "overlap": round((cosines / (m * (m - 1))).item(), 4),
    }


def measure(map: Counted, method: Exponential, state: State) -> dict[str, float]:
    """Figures of what a fit that ended here would return; measuring costs no work.

    Args:
        map: The map.
        method: The method.
        state: Its state.
    """
    before = map.tally[0]
    work = before + method.num_factors * len(map.chosen) / 2
    figures = {"work": work, **tame(method.finish(map, state))}
    map.tally[0] = before
    return figures


def moved(new: State, old: State) -> list[float]:
    """1 − cos of each factor's gradient with that of the sweep before.

    The smallest, the quartiles and the largest come first, then shares below 1e-3, 1e-2 and 1e-1.
    """
    change = 1 - (new.V * old.V).sum(-1)
    quantiles = torch.quantile(change, torch.tensor([0, 0.25, 0.5, 0.75, 1.0])).tolist()
    shares = [(change < tol).float().mean().item() for tol in (1e-3, 1e-2, 1e-1)]
    return [round(x, 5) for x in (*quantiles, *shares)]


@dataclass
class Run:
    """Sweeps of a method.

    Attributes:
        states: Its states, the start first.
        tallies: Work before each.
        row: Figures that were measured.
    """

    states: list[State]
    tallies: list[float]
    row: Figures


def run(
    map: Counted,
    method: Exponential,
    state: State,
    sweeps: int,
    at: Sequence[int],
    maps: Sequence[Counted] | None = None,
) -> Run:
    """Make sweeps from a state, finished and measured after some of them.

    Args:
        map: The map.
        method: The method.
        state: The state to start from.
        sweeps: Number of sweeps.
        at: Numbers of the sweeps after which is measured.
        maps: A map for each sweep, if not the same for all.
    """
    out = Run([state], [map.tally[0]], {"sweep": [], "at": {}})
    for i in range(1, sweeps + 1):
        state, _ = method.step(maps[i - 1] if maps else map, state)
        entry: Figures = {"work": map.tally[0], "moved": moved(state, out.states[-1])}
        if maps is None or maps[i - 1] is map:
            assert state.found is not None
            entry |= tame(state.found)
        out.row["sweep"].append(entry)
        out.states.append(state)
        out.tallies.append(map.tally[0])
        if i in at:
            out.row["at"][i] = measure(map, method, state)
            print(f"    after {i:2} sweeps: {out.row['at'][i]}", flush=True)
    return out


def standing_still(
    map: Counted, method: Exponential, default: Run, tol: float, sweeps: int
) -> Figures:
    """Sweeps in which factors that moved less than a tolerance stay as they are.

    They begin where the default run has the first such factor.

    Args:
        map: The map.
        method: The method.
        default: Its run without stopping.
        tol: The tolerance.
        sweeps: Number of sweeps.
    """
    pairs = zip(default.states[1:], default.states[2:], strict=False)
    changes = [1 - (new.V * old.V).sum(-1) for old, new in pairs]
    still_at = (i for i, change in enumerate(changes, 2) if (change < tol).any() and i < sweeps)
    first = next(still_at, None)
    if first is None:
        return {"still": [0] * sweeps, "at": {sweeps: default.row["at"][sweeps]}}
    state, still = default.states[first], changes[first - 2] < tol
    map.tally[0] = default.tallies[first]
    counts = [0] * (first - 1) + [int(still.sum())]
    for _ in range(first, sweeps):
        if still.all():
            break
        V = orthogonalise(state.V, "qr", state.gain)
        new, U, gain = state.V.clone(), state.U.clone(), state.gain.clone()
        D, gradient = map.value_and_vjp(method.scale * V[~still], lambda D, _: unit(D))
        new[~still], U[~still] = unit(gradient, fallback=V[~still]), unit(D)
        gain[~still] = method.scale * gradient.norm(dim=-1)
        still = still | (1 - (new * state.V).sum(-1) < tol)
        state = State(new, U, gain)
        counts.append(int(still.sum()))
    return {"still": counts, "at": {len(counts): measure(map, method, state)}}


class Study:
    """The model, sizes, and the runs that others are compared with.

    Args:
        quick: Whether sizes are so small that figures mean nothing.
    """

    def __init__(self, quick: bool) -> None:
        self.m, self.big, self.few, self.n = (8, 16, 8, 4) if quick else (64, 256, 16, 8)
        self.at = (1, 3) if quick else (1, 2, 3, 5, 7, 10)
        self.sweeps, self.shared_sweeps, self.big_sweeps, self.small_sweeps = (
            (3, 3, 2, 1) if quick else (10, 7, 3, 3)
        )
        lm = load("smollm2")
        self.one, self.all = (
            CausalMap(
                lm, Prompts.chat(lm, PROMPTS[:n], system=""), 8, 20, prompt_batch=1, compile=False
            )
            for n in (1, self.n)
        )
        self.defaults: dict[int, Run] = {}

    def describe(self) -> Figures:
        """Settings, JSON-able."""
        return {
            "prompts": PROMPTS,
            "m": self.m,
            "big": self.big,
            "m of 8 prompts": self.few,
            "scale": SCALE,
            "source": 8,
            "target": 20,
            "nonnegative": True,
        }

    def default(self, seed: int) -> Run:
        """The usual fit, run once a seed."""
        if seed not in self.defaults:
            self.defaults[seed] = self.alone(Exponential(self.m, SCALE), seed, self.sweeps, self.at)
        return self.defaults[seed]

    def alone(self, method: Exponential, seed: int, sweeps: int, at: Sequence[int]) -> Run:
        """A method on one prompt from its own start.

        Args:
            method: The method.
            seed: Random seed.
            sweeps: Number of sweeps.
            at: Numbers of the sweeps after which is measured.
        """
        map = Counted(self.one)
        start = method.init(map, torch.Generator().manual_seed(seed))
        return run(map, method, start, sweeps, at)

    def still(self, tol: float, seed: int) -> Figures:
        """Stopping factor by factor."""
        method, default = Exponential(self.m, SCALE), self.default(seed)
        return standing_still(Counted(self.one), method, default, tol, self.sweeps)

    def warm(self, fill: str, seed: int) -> Figures:
        """A big fit that starts from a small one after a few sweeps.

        In all it has one sweep fewer than the fit that it is compared with.

        Args:
            fill: ``"random"`` or ``"backward"`` rows beside those of the small fit.
            seed: Random seed.
        """
        map = Counted(self.one)
        small, big = Exponential(self.m, SCALE), Exponential(self.big, SCALE)
        start = small.init(map, torch.Generator().manual_seed(seed))
        state = run(map, small, start, self.small_sweeps, ()).states[-1]
        generator = torch.Generator().manual_seed(100 + seed)
        extra = self.big - self.m
        if fill == "random":
            V = complete(orthogonalise(state.V, "qr", state.gain), self.big, generator)
        else:
            V = torch.cat([state.V, unit(map.vjp(random_rows(extra, map.d_target, generator)))])
        gain = torch.cat([state.gain, torch.zeros(extra)])
        begin, sweeps = State(V, torch.zeros(self.big, map.d_target), gain), self.big_sweeps - 1
        return run(map, big, begin, sweeps, (sweeps,)).row

    def prompts(self, size: int, full: int, seed: int) -> Figures:
        """Sweeps on random subsets of the prompts, the last of them on all.

        Args:
            size: Number of prompts in a subset.
            full: Number of sweeps on all.
            seed: Random seed.
        """
        map, method, sweeps = Counted(self.all), Exponential(self.few, SCALE), self.shared_sweeps
        draw = torch.Generator().manual_seed(200 + seed)
        subsets = [
            map.subset(torch.randperm(self.n, generator=draw)[:size].tolist())
            for _ in range(sweeps - full)
        ]
        state = method.init(map, torch.Generator().manual_seed(seed))
        at = (4, sweeps) if full == sweeps else (sweeps,)
        return run(map, method, state, sweeps, at, subsets + [map] * full).row

    def groups(self) -> dict[str, dict[str, Callable[[int], Figures]]]:
        """Functions of the seed, by group and candidate."""
        m, n, last, few = self.m, self.n, self.sweeps, self.big_sweeps

        def alone(method: Exponential) -> Callable[[int], Figures]:
            return lambda seed: self.alone(method, seed, last, (5, last)).row

        big = Exponential(self.big, SCALE)
        return {
            "base": {"default": lambda seed: self.default(seed).row},
            "still": {
                f"still below {tol:g}": partial(self.still, tol) for tol in (1e-3, 1e-2, 1e-1)
            },
            "order": {"blocks of 16": alone(Blocks(m, SCALE)), "Jacobi": alone(Jacobi(m, SCALE))},
            "damped": {"beta 0.5": alone(Exponential(m, SCALE, beta=0.5))},
            "blocks": {"blocks of 32": alone(Blocks(m, SCALE, block=32))},
            "start": {
                "start: backward": alone(Exponential(m, SCALE, start="backward")),
                "start: random": alone(Started(m, SCALE)),
                "start: m projections": alone(Started(m, SCALE, how="wide")),
            },
            "prompts": {
                "prompts: all": lambda seed: self.prompts(n, self.shared_sweeps, seed),
                "prompts: quarter, then 2 full": lambda seed: self.prompts(n // 4, 2, seed),
                "prompts: half, then 2 full": lambda seed: self.prompts(n // 2, 2, seed),
            },
            "big": {
                "big: projected": lambda seed: self.alone(big, seed, few, (few,)).row,
                "big: warm, random rows": lambda seed: self.warm("random", seed),
                "big: warm, backward rows": lambda seed: self.warm("backward", seed),
            },
        }


def table(rows: Mapping[str, Mapping[str, Figures]]) -> str:
    """A line for each candidate, seed and number of sweeps.

    Work comes first, then what would be returned, then what the last sweep's orthonormal factors
    explain, each relative to the default's last.

    Args:
        rows: Figures by candidate and seed.
    """
    lines = [
        f"{'candidate':30} seed sweeps   work  explained  relative  ordinary  relative"
        "  effect  orthonormal  relative"
    ]
    beside = {"prompts": "prompts: all", "big": "big: projected"}
    for name, by_seed in rows.items():
        bases = rows.get(beside.get(name.split(":")[0], "default"), {})
        for seed, row in by_seed.items():
            base = bases.get(seed)
            if base is None:
                continue
            end, last = list(base["at"].values())[-1], base["sweep"][-1]["ordinary"]
            for sweeps, x in row["at"].items():
                within = float("nan")
                if "sweep" in row:
                    within = row["sweep"][int(sweeps) - 1]["ordinary"]
                shares = "".join(
                    f"{x[key]:11.0f}{x[key] / end[key]:10.3f}" for key in ("explained", "ordinary")
                )
                lines.append(
                    f"{name:30} {seed:>4} {sweeps:>6} {x['work'] / end['work']:6.3f}{shares} "
                    f"{x['effect']:7.1f} {within:12.0f} {within / last:9.3f}"
                )
    return "\n".join(lines)


def kept_rows(path: Path, setting: Figures) -> dict[str, dict[str, Figures]]:
    """Rows of a file, to which a group is added.

    Raises:
        MelboError: The rows of the file were measured with other settings.
    """
    kept = json.loads(path.read_text(encoding="utf-8"))
    if kept["setting"] != json.loads(json.dumps(setting)):
        raise MelboError(
            f"{path} holds rows of other settings, not to be mixed with new ones: "
            "measure all groups, naming none"
        )
    return dict(kept["rows"])


def main() -> None:
    """Measure the groups asked for, adding to what the file holds."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="Try the script: a small run that writes nothing."
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="Random seeds.")
    parser.add_argument("groups", nargs="*", help="Groups to measure; by default all.")
    asked = parser.parse_args()
    study = Study(asked.quick)
    groups = study.groups()
    rows: dict[str, dict[str, Figures]] = {}
    if OUT.exists() and asked.groups and not asked.quick:
        rows = kept_rows(OUT, study.describe())
    for seed in asked.seeds[:1] if asked.quick else asked.seeds:
        for group in asked.groups or groups:
            for name, candidate in groups[group].items():
                print(f"{name}, seed {seed}", flush=True)
                rows.setdefault(name, {})[str(seed)] = candidate(seed)
                if not asked.quick:
                    about = {"environment": environment(), "setting": study.describe()}
                    save("sweeps", {**about, "rows": rows})
    # keys as JSON has them, of rows that were read and of new ones
    print(table(json.loads(json.dumps(rows))))


if __name__ == "__main__":
    main()
