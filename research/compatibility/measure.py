"""Rows of the suite: each check of a model ends as passed, refused with the reason, or wrong."""

import re
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import peft

from melbo.errors import MelboError
from melbo.models.language_model import LanguageModel
from melbo.records import environment
from research.compatibility.bench import Bench, Wrong
from research.compatibility.models import Subject, subjects
from research.compatibility.rows import PASS, REFUSED, WRONG
from research.compatibility.running import (
    cached,
    causal,
    equal_rows,
    padded,
    replay,
    steered_tokens,
)
from research.compatibility.weights import ablated, exported, merged, saved

#: All checks, by name, in the order of the page's columns.
CHECKS: dict[str, Callable[[Bench], None]] = {
    "map": replay,
    "causal": causal,
    "equal rows": equal_rows,
    "where, skip_first": steered_tokens,
    "cached replies": cached,
    "padded batch": padded,
    "ablate": ablated,
    "merge": merged,
    "export": exported,
    "save, load": saved,
}
# figures and digests, which may differ from one machine to the next
_FIGURES = re.compile(r"\d\.\d+(?:e[+-]\d+)?|(?<=weights )[0-9a-f]{8}")


def measure_all(say: Callable[[str], object]) -> dict[str, Any]:
    """Rows of all models, and the versions that they were measured with.

    Args:
        say: Called with the name of each model that is done.
    """
    rows = []
    for subject in subjects().values():
        rows.append(measure(subject))
        say(subject.name)
    return {"environment": {**environment(), "peft": peft.__version__}, "rows": rows}


def measure(subject: Subject) -> dict[str, Any]:
    """Row of a model: its name and kind, what each check says, and its traits where it loads.

    Args:
        subject: The model.
    """
    row: dict[str, Any] = {"model": subject.name, "kind": subject.kind}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        loaded: list[LanguageModel] = []
        outcome = _outcome(lambda: loaded.append(subject.make(home)), home)
        if not loaded:
            return {**row, "checks": dict.fromkeys(CHECKS, outcome), "traits": None}
        found = {}
        for i, (name, check) in enumerate(CHECKS.items()):
            own = home / str(i)
            own.mkdir()
            found[name] = _outcome(partial(check, Bench(subject, loaded[0], own)), home)
    return {**row, "checks": found, "traits": asdict(loaded[0].traits)}


def _outcome(run: Callable[[], object], folder: Path) -> str:
    """Outcome of running something; figures and folders are left out of a refusal."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run()
    except MelboError as err:
        text = str(err)
        if "\n" in text:
            return f"{WRONG}a refusal of several lines: {text!r}"
        places = re.compile(re.escape(str(folder)) + r"[^\s']*")
        return REFUSED + _FIGURES.sub("…", places.sub("…", text))
    except Wrong as err:
        return WRONG + str(err)
    # whatever comes instead of a refusal is what the suite looks for
    except Exception as err:
        return f"{WRONG}{type(err).__name__}: {err}"
    return PASS
