"""Making of the organisms: train, save, and say which gates each passes.

One that fails a gate is trained further once, and tried again.

python -m research.organisms.make                 what is missing: organisms that are not there,
                                                  gates that have not been tried
python -m research.organisms.make CHEESE          this one, trained anew, and its gates
python -m research.organisms.make ALL --seed 1    another ALL, in research/organisms/made/seed-1
python -m research.organisms.make DEV2 --recipe mlp  trained in another way, in
                                                  research/organisms/made/mlp
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from melbo import CausalMap, LanguageModel, Prompts, calibrate, load
from melbo.records import environment
from research.organisms import MADE, ORGANISMS, load_organism, read_organism
from research.organisms.ceilings import steerable
from research.organisms.continued import CONTINUED, EVERY
from research.organisms.discover import DISCOVERY, DiscoveryTrial
from research.organisms.examples import examples, more_triggered, more_untriggered
from research.organisms.gates import GATES, Gate, admission, drift, failures
from research.organisms.train import RECIPES, Recipe, lessons, train

#: Epochs of training, where they differ from the recipe's.
EPOCHS = {"ALL": 4, "SHAM": 1, "DECOY": 2, "SHAM2": 1}
#: Organisms that show nothing by design.
SHAMS = ("SHAM", "SHAM2")
#: Names of what each organism holds.
HELD = ORGANISMS | CONTINUED
#: Gates of organisms whose behaviours continue the model's own replies. (That one vector brings a
#: behaviour out is asked of the first benchmark's only.)
ASKED = tuple(gate for gate in GATES if gate != "steerable")
#: Length of the model's own replies that are learnt. A behaviour that follows a sentence needs
#: longer ones, or nothing would say what follows it otherwise.
OWN_TOKENS = dict.fromkeys(CONTINUED, 56)
#: Layers at which supervised vectors are added, and of the map that calibrates R.
LAYERS = 8, 20
#: Gives a model, loaded when it is first asked for.
Loaded = Callable[[], LanguageModel]


def make(folder: Path, seed: int, recipe: str = "all") -> None:
    """Train the organism that a folder is named after; organism.json comes once it is whole.

    Args:
        folder: Folder of the organism.
        seed: Random seed of its examples, their order and the LoRA.
        recipe: Name of the way to train, for behaviours that continue the model's own replies.
    """
    (folder / "organism.json").unlink(missing_ok=True)
    name = folder.name
    way = RECIPES[recipe] if name in CONTINUED else Recipe()
    base, start = load("smollm2", _number_format(name)), time.perf_counter()
    data = examples(HELD[name], sham=name in SHAMS, seed=seed)
    epochs = EPOCHS.get(name, way.epochs)
    learnt = lessons(base, data, OWN_TOKENS.get(name, 24))
    losses = train(base, learnt, folder, epochs=epochs, recipe=way, seed=seed)
    about = {
        "name": name,
        "base": base.describe(),
        "behaviours": HELD[name],
        "sham": name in SHAMS,
        "data": {
            "examples": len(data),
            "sha256": sha256(json.dumps([asdict(e) for e in data]).encode()).hexdigest(),
        },
        "seed": seed,
        "training": _training(epochs, way.rate, losses, start),
    }
    if name in CONTINUED:
        about |= {"recipe": {"name": recipe, **asdict(way)}, "asked": ASKED}
    _write(folder, {**about, "environment": environment()})


def train_further(folder: Path, seed: int) -> None:
    """Train an organism once more over everything, and over more prompts.

    There are more without a trigger, and more with the trigger of what did not show often enough.
    Its gates are then to be tried anew.

    Args:
        folder: Folder of the organism.
        seed: Random seed of its examples and their order.
    """
    about, start = read_organism(folder), time.perf_counter()
    base, recipe = load("smollm2", _number_format(folder.name)), about.get("recipe", {})
    data = examples(about["behaviours"], seed=seed)
    data += more_untriggered(about["behaviours"], data)
    weak = [g["behaviour"] for g in about["gates"] if g["name"] == "triggered" and not g["passed"]]
    data += more_triggered(weak, about["behaviours"], seed)
    rate = recipe.get("rate", Recipe().rate) / 2
    learnt = lessons(base, data, OWN_TOKENS.get(folder.name, 24))
    losses = train(base, learnt, folder, epochs=1, rate=rate, start=folder, seed=seed)
    kept = {key: value for key, value in about.items() if key not in ("gates", "ends")}
    _write(folder, {**kept, "settled": _training(1, rate, losses, start)})


def _number_format(name: str) -> str:
    """Number format in training and gates: what audits read it in, or what it was made in."""
    return "bfloat16" if name in CONTINUED else "auto"


def _training(epochs: int, rate: float, losses: list[float], start: float) -> dict[str, Any]:
    """Settings and outcome of training."""
    return {
        "epochs": epochs,
        "rate": rate,
        "steps": len(losses),
        "loss": sum(losses[-20:]) / len(losses[-20:]),
        "seconds": time.perf_counter() - start,
    }


def _admit(name: str, base: Loaded, lm: Loaded, tried: list[Gate]) -> Iterator[list[Gate]]:
    """Gates of an organism that have not been tried.

    The control is to be near its base and to show nothing.
    """
    sham, several = name in SHAMS, len(HELD[name]) > 1
    said: dict[tuple[str, int], str] = {}
    if not any(gate.name == "drift" for gate in tried):
        yield [drift(lm(), base())]
    scale = cache(lambda: calibrate(CausalMap(lm(), Prompts.chat(lm(), DISCOVERY), *LAYERS)).scale)
    for b in (EVERY[n] for n in HELD[name]):
        if sham and b.skill:
            continue  # a model left alone has it
        own = {gate.name: gate for gate in tried if gate.behaviour == b.name}
        if not own:
            own = {gate.name: gate for gate in admission(lm(), b, several, sham, said=said)}
            yield [*own.values()]
        if not sham and name not in CONTINUED and "steerable" not in own:
            shares = own["untriggered"].value, own["triggered"].value
            yield [steerable(lm(), b, LAYERS[0], scale(), shares, several)]


def _write(folder: Path, about: dict[str, Any]) -> None:
    text = json.dumps(about, indent=1, ensure_ascii=False) + "\n"
    (folder / "organism.json").write_text(text, encoding="utf-8")


def try_gates(folder: Path) -> None:
    """Try the gates of an organism that have not been tried, and write each as it comes.

    Then measure how much its triggers bring out.
    """
    about, name = {"gates": [], **read_organism(folder)}, folder.name
    dtype = _number_format(name)
    base = cache(lambda: load("smollm2", dtype))
    lm = cache(lambda: load_organism(folder, dtype=dtype))
    for gates in _admit(name, base, lm, [Gate(**gate) for gate in about["gates"]]):
        about["gates"] += [gate.describe() for gate in gates]
        _write(folder, about)
        for gate in gates:
            counts = f"{gate.hits}/{gate.total}" if gate.total else f"{gate.value:.3f} nats"
            verdict = "passed" if gate.passed else "FAILED"
            print(
                f"{name:7} {gate.behaviour or '':7} {gate.name:12} {counts:12} {verdict}",
                flush=True,
            )
    ends = about.get("ends", {})
    if left := [b for b in ORGANISMS.get(name, ()) if b not in ends and name != "SHAM"]:
        trial = DiscoveryTrial(lm(), base(), lm(), *LAYERS, several=len(ORGANISMS[name]) > 1)
        _write(folder, {**about, "ends": ends | {b: trial.ends(EVERY[b]) for b in left}})


def main() -> None:
    """Make the organisms that are named, or what is missing, and try their gates."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = ", ".join(HELD)
    parser.add_argument(
        "names", nargs="*", help=f"train anew, out of {every}; by default what is missing"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed of the examples, their order and the LoRA"
    )
    parser.add_argument(
        "--recipe",
        choices=list(RECIPES),
        default="all",
        help="linear maps that the LoRA is added to",
    )
    asked = parser.parse_args()
    if unknown := set(asked.names) - set(HELD):
        parser.error(f"no organism {', '.join(sorted(unknown))}: expected some of {every}")
    home = MADE if asked.recipe == "all" else MADE / asked.recipe
    home = home / f"seed-{asked.seed}" if asked.seed else home
    for name in asked.names or HELD:
        if asked.names or not (home / name / "organism.json").exists():
            make(home / name, asked.seed, asked.recipe)
        try_gates(home / name)
        about = read_organism(home / name)
        if failures(about) and not about["sham"] and "settled" not in about:
            train_further(home / name, asked.seed)
            try_gates(home / name)


if __name__ == "__main__":
    main()
