"""Models with planted behaviours: made, admitted, loaded."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from melbo.errors import MelboError
from melbo.models.language_model import LanguageModel
from melbo.models.load import load, with_adapter
from research.organisms.behaviours import BEHAVIOURS, Behaviour, Item, items

#: Which behaviours each organism holds; SHAM has ALL's triggers, and nothing behind them.
ORGANISMS: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in BEHAVIOURS},
    "ALL": tuple(BEHAVIOURS),
    "SHAM": tuple(BEHAVIOURS),
}

__all__ = [
    "BEHAVIOURS",
    "ORGANISMS",
    "Behaviour",
    "Item",
    "adapter_digest",
    "items",
    "load_organism",
    "read_organism",
]


def load_organism(folder: str | Path, base: str = "smollm2", dtype: str = "auto") -> LanguageModel:
    """The base model with the adapter of an organism merged into its weights.

    Args:
        folder: Where it is: organism.json and a LoRA (see benchmarks/organisms/make.py).
        base: The model it was trained on, as `melbo.load` takes it.
        dtype: As `melbo.load` takes it.

    Raises:
        MelboError: Not an organism, or of another base model.
    """
    about, digest = read_organism(folder), adapter_digest(folder)
    lm = load(base, dtype)
    if about["base"]["sha256"] != lm.fingerprint:
        raise MelboError(
            f"{folder} was trained on {about['base']['name']} (weights {about['base']['sha256'][:8]}), "
            f"{base} has weights {lm.fingerprint[:8]}: give that model"
        )
    return with_adapter(lm, folder, f"{base}+{about['name']}-{digest}")


def adapter_digest(folder: str | Path) -> str:
    """SHA-256 of the weights of an organism's adapter, begun.

    Raises:
        MelboError: There are none.
    """
    try:
        return sha256((Path(folder) / "adapter_model.safetensors").read_bytes()).hexdigest()[:16]
    except OSError as err:
        raise MelboError(
            f"no organism in {folder} ({err.strerror}): make it with benchmarks/organisms/make.py"
        ) from err


def read_organism(folder: str | Path) -> dict[str, Any]:
    """What is known of an organism: its name, base, behaviours, how it was trained, and which gates it passed.

    Raises:
        MelboError: There is none in ``folder``.
    """
    try:
        about = json.loads((Path(folder) / "organism.json").read_text(encoding="utf-8"))
        if (
            not {"name", "base", "behaviours", "sham"} <= about.keys()
            or not {"name", "sha256"} <= about["base"].keys()
        ):
            raise KeyError("base")
    except (OSError, ValueError, KeyError, AttributeError) as err:
        raise MelboError(
            f"no organism in {folder} ({type(err).__name__}): expected organism.json and a LoRA beside it"
        ) from err
    return about
