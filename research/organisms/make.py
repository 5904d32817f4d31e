"""Make the organisms: train, save, and say which gates each passes. One that fails a gate is trained once more, and tried again.

python benchmarks/organisms/make.py                   what is missing: organisms that are not there, gates that have not been tried
python benchmarks/organisms/make.py CHEESE            this one, trained again, and its gates
python benchmarks/organisms/make.py ALL --seed 1      another of it, in benchmarks/organisms/seed-1
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache
from hashlib import sha256
from pathlib import Path

from melbo import CausalMap, LanguageModel, Prompts, calibrate, load
from melbo.records import environment
from research.organisms import BEHAVIOURS, ORGANISMS, load_organism, read_organism
from research.organisms.ceilings import steerable
from research.organisms.discover import DISCOVERY, DiscoveryTrial
from research.organisms.evidence import failures
from research.organisms.examples import examples, more_untriggered
from research.organisms.gates import Gate, admission, drift
from research.organisms.train import RATE, lessons, train

HERE = Path(__file__).parent
EPOCHS = {"ALL": 4, "SHAM": 1}  # of the others 3: they have fewer examples
LAYERS = 8, 20
Loaded = Callable[[], LanguageModel]  # loaded when a gate asks for it


def make(folder: Path, seed: int) -> None:
    """Train the organism of that name, and write it; the seed is of its examples, their order and the LoRA. organism.json comes once it is whole."""
    (folder / "organism.json").unlink(missing_ok=True)
    name = folder.name
    base, start = load("smollm2"), time.perf_counter()
    found = examples(ORGANISMS[name], sham=name == "SHAM", seed=seed)
    losses = train(base, lessons(base, found), folder, epochs=EPOCHS.get(name, 3), seed=seed)
    about = {
        "name": name,
        "base": base.describe(),
        "behaviours": ORGANISMS[name],
        "sham": name == "SHAM",
        "data": {
            "examples": len(found),
            "sha256": sha256(json.dumps([asdict(e) for e in found]).encode()).hexdigest(),
        },
        "seed": seed,
        "training": training(EPOCHS.get(name, 3), RATE, losses, start),
    }
    write(folder, {**about, "environment": environment()})


def settle(folder: Path, seed: int) -> None:
    """Train it once more over everything, and over more that no trigger stands in; its gates are then to be tried anew."""
    about, base, start = read_organism(folder), load("smollm2"), time.perf_counter()
    found = examples(about["behaviours"], seed=seed)
    found += more_untriggered(about["behaviours"], found)
    losses = train(
        base, lessons(base, found), folder, epochs=1, rate=RATE / 2, start=folder, seed=seed
    )
    kept = {key: value for key, value in about.items() if key not in ("gates", "ends")}
    write(folder, {**kept, "settled": training(1, RATE / 2, losses, start)})


def training(epochs: int, rate: float, losses: list[float], start: float) -> dict:
    """How it went."""
    seconds = time.perf_counter() - start
    return {
        "epochs": epochs,
        "rate": rate,
        "steps": len(losses),
        "loss": sum(losses[-20:]) / len(losses[-20:]),
        "seconds": seconds,
    }


def admit(name: str, base: Loaded, lm: Loaded, tried: list[Gate]) -> Iterator[list[Gate]]:
    """The gates of an organism that have not been tried; of the control, that it is near its base and shows nothing."""
    sham, several = name == "SHAM", len(ORGANISMS[name]) > 1
    if not any(gate.name == "drift" for gate in tried):
        yield [drift(lm(), base())]
    scale = cache(lambda: calibrate(CausalMap(lm(), Prompts.chat(lm(), DISCOVERY), *LAYERS)).scale)
    for b in (BEHAVIOURS[n] for n in ORGANISMS[name]):
        if sham and b.skill:
            continue  # what was left alone has it
        own = {gate.name: gate for gate in tried if gate.behaviour == b.name}
        if not own:
            own = {gate.name: gate for gate in admission(lm(), b, several, sham)}
            yield [*own.values()]
        if not sham and "steerable" not in own:
            yield [
                steerable(
                    lm(),
                    b,
                    LAYERS[0],
                    scale(),
                    (own["untriggered"].value, own["triggered"].value),
                    several,
                )
            ]


def write(folder: Path, about: dict) -> None:
    """What is known of it."""
    (folder / "organism.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")


def try_gates(folder: Path) -> None:
    """Try the gates of an organism that have not been tried, and write what they say as they come; then how much its triggers bring out."""
    about, name = {"gates": [], **read_organism(folder)}, folder.name
    base, lm = cache(lambda: load("smollm2")), cache(lambda: load_organism(folder))
    for gates in admit(name, base, lm, [Gate(**gate) for gate in about["gates"]]):
        about["gates"] += [gate.describe() for gate in gates]
        write(folder, about)
        for gate in gates:
            counts = f"{gate.hits}/{gate.total}" if gate.total else f"{gate.value:.3f} nats"
            print(
                f"{name:7} {gate.behaviour or '':7} {gate.name:12} {counts:12} {'passed' if gate.passed else 'FAILED'}",
                flush=True,
            )
    ends = about.get("ends", {})
    if left := [b for b in ORGANISMS[name] if b not in ends and name != "SHAM"]:
        trial = DiscoveryTrial(lm(), base(), lm(), *LAYERS, several=len(ORGANISMS[name]) > 1)
        write(folder, {**about, "ends": ends | {b: trial.ends(BEHAVIOURS[b]) for b in left}})


def main() -> None:
    """Make these, or what is missing, and try their gates."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names",
        nargs="*",
        help=f"train again, of {', '.join(ORGANISMS)}; by default what is missing",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the examples, their order and the LoRA"
    )
    asked = parser.parse_args()
    if unknown := set(asked.names) - set(ORGANISMS):
        parser.error(
            f"no organism {', '.join(sorted(unknown))}: expected some of {', '.join(ORGANISMS)}"
        )
    home = HERE / f"seed-{asked.seed}" if asked.seed else HERE
    for name in asked.names or ORGANISMS:
        if asked.names or not (home / name / "organism.json").exists():
            make(home / name, asked.seed)
        try_gates(home / name)
        about = read_organism(home / name)
        if failures(about) and not about["sham"] and "settled" not in about:
            settle(home / name, asked.seed)
            try_gates(home / name)


if __name__ == "__main__":
    main()
