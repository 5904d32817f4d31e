"""How much work the exponential method needs: starts, orders of update, stopping, subsets of prompts, warm starts, on the bundled model.

python benchmarks/sweeps.py [GROUP …] [--quick] [--seeds 0 1]    prints a table and writes benchmarks/results/sweeps.json (half an hour on one core)

Work is counted, not timed: 1 for the forward and backward pass of one factor on one prompt, ½ for a forward pass alone or a derivative at zero
(which share their forward pass). It includes the start and the last recomputation of U and α. Rows ``at`` hold what a fit that ended after so
many sweeps would return, rows ``sweep`` the orthonormal factors that each sweep evaluated. Prompts have an empty system message: 21 tokens for
37, the same work.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from melbo import CausalMap, Exponential, Prompts, load
from melbo.maps.base import Map, Piece
from melbo.maths.linalg import complete, orthogonalise, random_rows, unit
from melbo.maths.transcoder import Factors, fit_strengths
from melbo.methods.exponential import _State as State
from melbo.methods.starts import projected_start
from melbo.records import environment

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
OUT = Path(__file__).parent / "results" / "sweeps.json"


class Counted(Map):
    """Δ averaged over some prompts of a `CausalMap`, counting passes in a tally that its subsets share."""

    def __init__(
        self, causal: CausalMap, chosen: list[int] | None = None, tally: list[float] | None = None
    ) -> None:
        self.causal, self.tally = causal, [0.0] if tally is None else tally
        self.chosen = list(range(len(causal.pieces))) if chosen is None else chosen
        for name in ("d_source", "d_target", "dtype", "device", "tokens_per_pass"):
            setattr(self, name, getattr(causal, name))

    @property
    def pieces(self) -> list[Piece]:
        """Those of the chosen prompts, weighted so that they average."""
        all_pieces = self.causal.pieces
        weight = len(all_pieces) / len(self.chosen)
        return [
            Piece(
                lambda theta, fn=all_pieces[i].fn: weight * fn(theta),
                all_pieces[i].columns,
                all_pieces[i].cost,
            )
            for i in self.chosen
        ]

    def subset(self, chosen: list[int]) -> "Counted":
        """The map on a few of the prompts, counting in the same tally."""
        return Counted(self.causal, chosen, self.tally)

    def _count(self, passes: float) -> None:
        self.tally[0] += passes * len(self.chosen)

    def value(self, theta):
        """A forward pass: one half."""
        self._count(len(theta) / 2)
        return super().value(theta)

    def value_and_vjp(self, theta, cotangent):
        """A forward and a backward pass: one."""
        self._count(len(theta))
        return super().value_and_vjp(theta, cotangent)

    def vjp(self, u):
        """Backward passes that share one forward pass: one half."""
        self._count(len(u) / 2)
        return super().vjp(u)


@dataclass(frozen=True)
class Jacobi(Exponential):
    """The gradient of ⟨u, Δ⟩ with u of the sweep before; the first sweep, which has none, as always."""

    def step(self, map, state):
        """A sweep whose u lags behind v."""
        if not state.U.any():
            return super().step(map, state)
        V = orthogonalise(state.V, "qr", state.gain)
        D, gradient = map.value_and_vjp(self.scale * V, state.U)
        found = fit_strengths(V, unit(D), D.norm(dim=-1), "exponential")
        return State(
            unit(gradient, fallback=V), unit(D), self.scale * gradient.norm(dim=-1), found
        ), {}


@dataclass(frozen=True)
class Blocks(Exponential):
    """Gauss–Seidel over factors: strongest first, each block pushed away from what the blocks before it have just become."""

    block: int = 16

    def step(self, map, state):
        """A sweep, block by block."""
        V, U, moved, gain = state.V.clone(), state.U.clone(), state.V.clone(), state.gain.clone()
        b = state.gain.clone()
        order = state.gain.argsort(descending=True, stable=True)
        done = order[:0]
        for rows in order.split(self.block):
            new = state.V[rows]
            if len(done):
                basis = orthogonalise(moved[done], "qr")
                for _ in range(2):
                    new = new - new @ basis.T @ basis
            V[rows] = orthogonalise(unit(new), "qr")
            D, gradient = map.value_and_vjp(self.scale * V[rows], lambda D, _: unit(D))
            U[rows], b[rows], gain[rows] = (
                unit(D),
                D.norm(dim=-1),
                self.scale * gradient.norm(dim=-1),
            )
            moved[rows] = unit(gradient, fallback=V[rows])
            done = torch.cat([done, rows])
        return State(moved, U, gain, fit_strengths(V, U, b, "exponential")), {}


@dataclass(frozen=True)
class Started(Exponential):
    """Other starts: ``"random"`` rows, or ``"wide"``: as many projections as factors."""

    how: str = "random"

    def init(self, map, generator):
        """Directions to start from."""
        m = self.num_factors
        V = (
            random_rows(m, map.d_source, generator)
            if self.how == "random"
            else projected_start(map, m, generator, m)
        )
        return State(V, torch.zeros(m, map.d_target), torch.ones(m))


def tame(factors: Factors) -> dict[str, float]:
    """Explained amount and mean effect without blow-ups.

    ``ordinary`` is what is explained without any above twice the median effect, a few of which can outweigh all others; ``overlap`` is the mean
    |cos| between source directions.
    """

    def explained(keep: Tensor) -> float:
        return round(
            fit_strengths(factors.V[keep], factors.U[keep], b[keep], "exponential").explained, 1
        )

    b = factors.b
    keep = b < 5 * b.median()
    m = len(b)
    return {
        "explained": explained(keep),
        "ordinary": explained(b < 2 * b.median()),
        "effect": round(b[keep].mean().item(), 2),
        "median": round(b.median().item(), 2),
        "largest": round(b.max().item(), 1),
        "blow_ups": int((~keep).sum()),
        "overlap": round((((factors.V @ factors.V.T).abs().sum() - m) / (m * (m - 1))).item(), 4),
    }


def measure(map: Counted, method: Exponential, state: State) -> dict[str, float]:
    """What a fit that ended here would return, with its work; measuring itself costs nothing."""
    before = map.tally[0]
    figures = {
        "work": before + method.num_factors * len(map.chosen) / 2,
        **tame(method.finish(map, state)),
    }
    map.tally[0] = before
    return figures


def moved(new: State, old: State) -> list[float]:
    """1 − cos of each factor's gradient with that of the sweep before: smallest, quartiles and largest, then shares below 1e-3, 1e-2, 1e-1."""
    change = 1 - (new.V * old.V).sum(-1)
    quantiles = torch.quantile(change, torch.tensor([0, 0.25, 0.5, 0.75, 1.0])).tolist()
    return [
        round(x, 5)
        for x in [*quantiles, *((change < tol).float().mean().item() for tol in (1e-3, 1e-2, 1e-1))]
    ]


@dataclass
class Run:
    """Sweeps of a method: its states, the tally before each, and what was measured."""

    states: list[State]
    tallies: list[float]
    row: dict


def run(
    map: Counted,
    method: Exponential,
    state: State,
    sweeps: int,
    at: tuple[int, ...],
    maps: list[Counted] | None = None,
) -> Run:
    """``sweeps`` sweeps from a state, finished and measured after those named; each on its own map where ``maps`` are given."""
    out = Run([state], [map.tally[0]], {"sweep": [], "at": {}})
    for i in range(1, sweeps + 1):
        state, _ = method.step(maps[i - 1] if maps else map, state)
        entry = {"work": map.tally[0], "moved": moved(state, out.states[-1])}
        if maps is None or maps[i - 1] is map:
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
) -> dict:
    """Factors that moved less than ``tol`` in a sweep stay as they are; begins where the default run has the first of them."""
    changes = [
        1 - (new.V * old.V).sum(-1)
        for old, new in zip(default.states[1:], default.states[2:], strict=False)
    ]
    first = next(
        (i for i, change in enumerate(changes, 2) if (change < tol).any() and i < sweeps), None
    )
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


class Bench:
    """The model, sizes, and the runs that others are compared with."""

    def __init__(self, quick: bool) -> None:
        self.m, self.big, self.few, self.n = (8, 16, 8, 4) if quick else (64, 256, 16, 8)
        self.at = (1, 3) if quick else (1, 2, 3, 5, 7, 10)
        self.sweeps, self.shared_sweeps, self.big_sweeps, self.small_sweeps = (
            (3, 3, 2, 1) if quick else (10, 7, 3, 3)
        )
        lm = load("smollm2")
        self.one = CausalMap(
            lm, Prompts.chat(lm, PROMPTS[:1], system=""), 8, 20, prompt_batch=1, compile=False
        )
        self.all = CausalMap(
            lm, Prompts.chat(lm, PROMPTS[: self.n], system=""), 8, 20, prompt_batch=1, compile=False
        )
        self.defaults: dict[int, Run] = {}

    def default(self, seed: int) -> Run:
        """What `melbo.fit` does, run once a seed."""
        if seed not in self.defaults:
            self.defaults[seed] = self.plain(Exponential(self.m, SCALE), seed, self.sweeps, self.at)
        return self.defaults[seed]

    def plain(self, method: Exponential, seed: int, sweeps: int, at: tuple[int, ...]) -> Run:
        """A method on one prompt from its own start."""
        map = Counted(self.one)
        return run(map, method, method.init(map, torch.Generator().manual_seed(seed)), sweeps, at)

    def still(self, tol: float, seed: int) -> dict:
        """Stopping factor by factor."""
        return standing_still(
            Counted(self.one), Exponential(self.m, SCALE), self.default(seed), tol, self.sweeps
        )

    def warm(self, fill: str, seed: int) -> dict:
        """A big fit from a small one after a few sweeps, in all one sweep fewer than the one it is compared with."""
        map, small, big = (
            Counted(self.one),
            Exponential(self.m, SCALE),
            Exponential(self.big, SCALE),
        )
        state = run(
            map, small, small.init(map, torch.Generator().manual_seed(seed)), self.small_sweeps, ()
        ).states[-1]
        generator = torch.Generator().manual_seed(100 + seed)
        extra = self.big - self.m
        if fill == "random":
            V = complete(orthogonalise(state.V, "qr", state.gain), self.big, generator)
        else:
            V = torch.cat([state.V, unit(map.vjp(random_rows(extra, map.d_target, generator)))])
        gain = torch.cat([state.gain, torch.zeros(extra)])
        return run(
            map,
            big,
            State(V, torch.zeros(self.big, map.d_target), gain),
            self.big_sweeps - 1,
            (self.big_sweeps - 1,),
        ).row

    def prompts(self, size: int, full: int, seed: int) -> dict:
        """Sweeps on random subsets of the prompts, the last ``full`` of them on all."""
        map, method = Counted(self.all), Exponential(self.few, SCALE)
        draw = torch.Generator().manual_seed(200 + seed)
        maps = [
            map.subset(torch.randperm(self.n, generator=draw)[:size].tolist())
            for _ in range(self.shared_sweeps - full)
        ] + [map] * full
        state = method.init(map, torch.Generator().manual_seed(seed))
        return run(
            map,
            method,
            state,
            self.shared_sweeps,
            (4, self.shared_sweeps) if full == self.shared_sweeps else (self.shared_sweeps,),
            maps,
        ).row

    def groups(self) -> dict:
        """Group → candidate → function of the seed."""
        m, n, last, few = self.m, self.n, self.sweeps, self.big_sweeps

        def plain(method):
            return lambda seed: self.plain(method, seed, last, (5, last)).row

        return {
            "base": {"default": lambda seed: self.default(seed).row},
            "still": {
                f"still below {tol:g}": lambda seed, tol=tol: self.still(tol, seed)
                for tol in (1e-3, 1e-2, 1e-1)
            },
            "order": {"blocks of 16": plain(Blocks(m, SCALE)), "Jacobi": plain(Jacobi(m, SCALE))},
            "damped": {"beta 0.5": plain(Exponential(m, SCALE, beta=0.5))},
            "blocks": {"blocks of 32": plain(Blocks(m, SCALE, block=32))},
            "start": {
                "start: backward": plain(Exponential(m, SCALE, start="backward")),
                "start: random": plain(Started(m, SCALE)),
                "start: m projections": plain(Started(m, SCALE, how="wide")),
            },
            "prompts": {
                "prompts: all": lambda seed: self.prompts(n, self.shared_sweeps, seed),
                "prompts: quarter, then 2 full": lambda seed: self.prompts(n // 4, 2, seed),
                "prompts: half, then 2 full": lambda seed: self.prompts(n // 2, 2, seed),
            },
            "big": {
                "big: projected": lambda seed: (
                    self.plain(Exponential(self.big, SCALE), seed, few, (few,)).row
                ),
                "big: warm, random rows": lambda seed: self.warm("random", seed),
                "big: warm, backward rows": lambda seed: self.warm("backward", seed),
            },
        }


def table(rows: dict) -> None:
    """Work, then what would be returned and what the last sweep's orthonormal factors explain, relative to the default's last."""
    print(
        f"{'candidate':30} seed sweeps   work  explained  relative  ordinary  relative  effect  orthonormal  relative"
    )
    for name, by_seed in rows.items():
        reference = {"prompts": "prompts: all", "big": "big: projected"}.get(
            name.split(":")[0], "default"
        )
        for seed, row in by_seed.items():
            base = rows.get(reference, {}).get(seed)
            if base is None:
                continue
            end, last = list(base["at"].values())[-1], base["sweep"][-1]["ordinary"]
            for sweeps, x in row["at"].items():
                within = (
                    row["sweep"][int(sweeps) - 1]["ordinary"] if "sweep" in row else float("nan")
                )
                shares = "".join(
                    f"{x[key]:11.0f}{x[key] / end[key]:10.3f}" for key in ("explained", "ordinary")
                )
                print(
                    f"{name:30} {seed:>4} {sweeps:>6} {x['work'] / end['work']:6.3f}{shares} {x['effect']:7.1f} {within:12.0f} {within / last:9.3f}"
                )


def main() -> None:
    """Measure the groups asked for, adding to what the file holds."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a small run that writes nothing: does the script work?",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("groups", nargs="*")
    asked = parser.parse_args()
    bench = Bench(asked.quick)
    groups = bench.groups()
    rows = (
        json.loads(OUT.read_text())["rows"]
        if OUT.exists() and asked.groups and not asked.quick
        else {}
    )
    setting = {
        "prompts": PROMPTS,
        "m": bench.m,
        "big": bench.big,
        "m of 8 prompts": bench.few,
        "scale": SCALE,
        "source": 8,
        "target": 20,
    }
    for seed in asked.seeds[:1] if asked.quick else asked.seeds:
        for group in asked.groups or groups:
            for name, measure_it in groups[group].items():
                print(f"{name}, seed {seed}", flush=True)
                rows.setdefault(name, {})[str(seed)] = measure_it(seed)
                if not asked.quick:
                    OUT.write_text(
                        json.dumps({"environment": environment(), "setting": setting, "rows": rows})
                        + "\n"
                    )
    table(json.loads(json.dumps(rows)))


if __name__ == "__main__":
    main()
