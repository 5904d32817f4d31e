"""Make the organisms: train, save, and say which gates each passes.

python benchmarks/organisms/make.py            what is missing: organisms that are not there, gates that have not been tried
python benchmarks/organisms/make.py CHEESE     these, trained again
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

from melbo import CausalMap, LanguageModel, Prompts, calibrate, load
from melbo.bench import environment
from melbo.organisms import BEHAVIOURS, ORGANISMS, load_organism, read_organism
from melbo.organisms.ceilings import steerable
from melbo.organisms.discover import DISCOVERY, Bench
from melbo.organisms.examples import examples
from melbo.organisms.gates import Gate, admission, drift
from melbo.organisms.train import RATE, lessons, train

HERE = Path(__file__).parent
EPOCHS = {"ALL": 4, "SHAM": 1}  # of the others 3: they have fewer examples
LAYERS = 8, 20


def make(name: str) -> None:
    """Train an organism, and write it."""
    base, folder, start = load("smollm2"), HERE / name, time.perf_counter()
    found = examples(ORGANISMS[name], sham=name == "SHAM")
    losses = train(base, lessons(base, found), folder, epochs=EPOCHS.get(name, 3))
    (folder / "README.md").unlink(missing_ok=True)  # peft's, a form to fill in
    about = {
        "name": name,
        "base": base.describe(),
        "behaviours": ORGANISMS[name],
        "sham": name == "SHAM",
        "data": {"examples": len(found), "sha256": sha256(json.dumps([asdict(e) for e in found]).encode()).hexdigest()},
        "training": {
            "epochs": EPOCHS.get(name, 3),
            "rate": RATE,
            "steps": len(losses),
            "loss": sum(losses[-20:]) / 20,
            "seconds": time.perf_counter() - start,
        },
        "environment": environment(),
    }
    write(folder, about)


def admit(name: str, base: LanguageModel, lm: LanguageModel, tried: set[str | None]) -> Iterator[list[Gate]]:
    """The gates of an organism that have not been tried, behaviour by behaviour; of the control, that it is near its base and shows nothing."""
    sham, several = name == "SHAM", len(ORGANISMS[name]) > 1
    if None not in tried:
        yield [drift(lm, base)]
    scale = None if sham else calibrate(CausalMap(lm, Prompts.chat(lm, DISCOVERY), *LAYERS)).scale
    for b in (BEHAVIOURS[n] for n in ORGANISMS[name] if n not in tried):
        if sham and b.skill:
            continue  # what was left alone has it
        gates = admission(lm, b, several, sham)
        untriggered, triggered, _ = (gate.value for gate in gates)
        if scale is not None:
            gates.append(steerable(lm, b, LAYERS[0], scale, (untriggered, triggered), several))
        yield gates


def write(folder: Path, about: dict) -> None:
    """What is known of it."""
    (folder / "organism.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")


def main(names: list[str]) -> None:
    """Make these, or what is missing."""
    for name in names or ORGANISMS:
        if names or not (HERE / name / "organism.json").exists():
            make(name)
        about = {"gates": [], **read_organism(HERE / name)}
        wanted = {None, *(n for n in ORGANISMS[name] if not (name == "SHAM" and BEHAVIOURS[n].skill))}
        tried = {gate["behaviour"] for gate in about["gates"]}
        if wanted <= tried and ("ends" in about or name == "SHAM"):
            continue
        base, lm = load("smollm2"), load_organism(HERE / name)
        for gates in admit(name, base, lm, tried):
            about["gates"] += [gate.describe() for gate in gates]
            write(HERE / name, about)
            for gate in gates:
                counts = f"{gate.hits}/{gate.total}" if gate.total else f"{gate.value:.3f} nats"
                print(f"{name:7} {gate.behaviour or '':7} {gate.name:12} {counts:12} {'passed' if gate.passed else 'FAILED'}", flush=True)
        if name != "SHAM":
            bench = Bench(lm, base, lm, *LAYERS, several=len(ORGANISMS[name]) > 1)
            write(HERE / name, {**about, "ends": {b: bench.ends(BEHAVIOURS[b]) for b in ORGANISMS[name]}})


if __name__ == "__main__":
    main(sys.argv[1:])
