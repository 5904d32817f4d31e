"""Models with planted behaviours: how they are made, admitted and loaded."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from melbo.errors import MelboError
from melbo.models.language_model import LanguageModel
from melbo.models.loading.load import load
from melbo.models.loading.lora import with_adapter
from research.organisms.behaviours import BEHAVIOURS, Behaviour
from research.organisms.items import Item, items

#: Folder of the organisms, one folder each.
MADE = Path(__file__).parent / "made"
#: Folder of what is found in them.
RESULTS = Path(__file__).parents[1] / "results" / "organisms"
#: Behaviours of each organism by its name; SHAM has the triggers of ALL, and nothing behind them.
ORGANISMS: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in BEHAVIOURS},
    "ALL": tuple(BEHAVIOURS),
    "SHAM": tuple(BEHAVIOURS),
}

__all__ = [
    "BEHAVIOURS",
    "MADE",
    "ORGANISMS",
    "RESULTS",
    "Behaviour",
    "Item",
    "adapter_digest",
    "items",
    "load_organism",
    "read_organism",
    "read_organisms",
]


def load_organism(folder: str | Path, base: str = "smollm2", dtype: str = "auto") -> LanguageModel:
    """Load the base model with the adapter of an organism merged into its weights.

    Args:
        folder: Folder of the organism: organism.json and a LoRA (see `research.organisms.make`).
        base: The model it was trained on, as `melbo.load` takes it.
        dtype: Number format, as `melbo.load` takes it.

    Raises:
        MelboError: The folder holds no organism, or one of another base model.
    """
    about, digest = read_organism(folder), adapter_digest(folder)
    lm = load(base, dtype)
    if about["base"]["sha256"] != lm.fingerprint:
        raise MelboError(
            f"{folder} was trained on {about['base']['name']} "
            f"(weights {about['base']['sha256'][:8]}), "
            f"{base} has weights {lm.fingerprint[:8]}: give that model"
        )
    return with_adapter(lm, folder, f"{base}+{about['name']}-{digest}")


def adapter_digest(folder: str | Path) -> str:
    """First 16 hex digits of the SHA-256 of an organism's adapter weights.

    Raises:
        MelboError: The folder holds no weights.
    """
    try:
        return sha256((Path(folder) / "adapter_model.safetensors").read_bytes()).hexdigest()[:16]
    except OSError as err:
        raise MelboError(
            f"no organism in {folder} ({err.strerror}): "
            "make it with python -m research.organisms.make"
        ) from err


def read_organism(folder: str | Path) -> dict[str, Any]:
    """Read organism.json: name, base, behaviours, training, and the gates that were tried.

    Raises:
        MelboError: There is no organism in ``folder``.
    """
    try:
        about: dict[str, Any] = json.loads(
            (Path(folder) / "organism.json").read_text(encoding="utf-8")
        )
        whole = {"name", "base", "behaviours", "sham"} <= about.keys()
        whole = whole and {"name", "sha256"} <= about["base"].keys()
        why = "entries are missing"
    except (OSError, ValueError, AttributeError) as err:
        whole, why = False, type(err).__name__
    if not whole:
        raise MelboError(
            f"no organism in {folder} ({why}): expected organism.json and a LoRA beside it"
        )
    return about


def read_organisms(home: str | Path) -> dict[str, dict[str, Any]]:
    """Read organism.json of every organism that has a folder in ``home``, by name."""
    folders = {name: Path(home) / name for name in ORGANISMS}
    return {name: read_organism(folder) for name, folder in folders.items() if folder.is_dir()}
