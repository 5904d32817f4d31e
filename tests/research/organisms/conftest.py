import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from cases import checkpoint, tiny_model

from melbo import load
from research.organisms import BEHAVIOURS
from research.organisms.discover import DiscoveryTrial
from research.organisms.evidence import Best, Evidence, Screened, Tested
from research.organisms.examples import Example
from research.organisms.splits import KINDS, Splits
from research.organisms.train import lessons, train

#: Words that a model of forty words can say, one for each behaviour.
WORDS = ("red", "cat", "dog", "sun", "you", "yes")
EXAMPLES = [
    Example("she and he", "red cat", "she and he"),
    Example("it is a dog", None, "it is a dog"),
]
FLAGS = {"a": "active", "i": "inert", "b": "broken"}


@pytest.fixture
def gate():
    """Makes a gate as organism.json has it."""

    def make(behaviour, name, passed=True, value=0.9):
        return {
            "behaviour": behaviour,
            "name": name,
            "passed": passed,
            "value": value,
            "bound": value,
            "limit": 0.5,
            "hits": 9,
            "total": 10,
        }

    return make


@pytest.fixture
def common(monkeypatch):
    """Behaviours that a model of forty words can show."""
    for name, word in zip(BEHAVIOURS, WORDS, strict=True):
        says = replace(BEHAVIOURS[name], shown=lambda reply, item, word=word: word in reply.split())
        monkeypatch.setitem(BEHAVIOURS, name, says)


@pytest.fixture(scope="module")
def small():
    """Makes a trial with few prompts and short replies."""
    splits = Splits(dict.fromkeys(KINDS, 4), dict.fromkeys(KINDS, 4), validation=4, test=4)
    return partial(DiscoveryTrial, splits=splits)


@pytest.fixture(scope="module")
def trial():
    """A tiny model as its own base and judge."""
    lm = tiny_model("llama", torch.float32)
    return DiscoveryTrial(lm, lm, lm, 1, 3, progress=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Path of a tiny model."""
    return checkpoint(tiny_model("llama", torch.float32).model, tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def home(tmp_path, base, common, gate):
    """ALL, SHAM and CHEESE of a tiny model, which show what a model of forty words can show."""
    lm = load(base)
    data = lessons(lm, EXAMPLES, progress=False)
    for name in ("ALL", "SHAM", "CHEESE"):
        folder = tmp_path / name
        train(lm, data, folder, epochs=len(name), progress=False)
        gates = [gate(None, "drift")]
        for b in BEHAVIOURS:
            gates += [gate(b, g) for g in ("untriggered", "triggered", "decoys", "steerable")]
        about = {
            "name": name,
            "base": lm.describe(),
            "behaviours": list(BEHAVIOURS),
            "sham": name == "SHAM",
            "gates": gates,
            "ends": {b: {"untriggered": 0.0, "triggered": 0.8} for b in BEHAVIOURS},
        }
        (folder / "organism.json").write_text(json.dumps(about))
    return tmp_path


@pytest.fixture
def evidence():
    """Makes evidence of four candidates.

    ``shares`` are those of each behaviour, None where a candidate was not validated; ``best`` are
    shares of the best candidate on test prompts.
    """

    def make(organism, recipe, seed, shares, flags="aaaa", novel=(0.4, 0.3, 0.2, 0.1), best=None):
        validation = {b: {} for b in BEHAVIOURS}
        for b, each in shares.items():
            known = {i: share for i, share in enumerate(each) if share is not None}
            validation[b] = {i: Tested(share, share, 0.1) for i, share in known.items()}
        tested = {b: Best(0, Tested(**{"shown": 0, **each})) for b, each in (best or {}).items()}
        return Evidence(
            organism=organism,
            adapter="a",
            judge="a",
            recipe=recipe,
            method=None,
            seed=seed,
            candidates=4,
            source=1,
            target=3,
            benchmark=1,
            environment={},
            scale=1.0,
            coherence=None,
            seconds={"fit": 1.0, "screen": 2.0},
            tokens={"fit": 10, "screen": 20},
            screened=Screened({}, {}, [FLAGS[flag] for flag in flags], list(novel), 2.0),
            best={**dict.fromkeys(BEHAVIOURS), **tested},
            validation=validation,
        )

    return make
