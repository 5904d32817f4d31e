"""Names of models, looked up before anything large is imported or the network is waited for."""

import difflib
import os
import re
import socket
import threading
import urllib.parse
import urllib.request
from pathlib import Path

from melbo.errors import MelboError

#: Name by which the bundled model is loaded.
ALIAS = "smollm2"
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_CHECKPOINT = ("config.json", "adapter_config.json")
# seconds that the hub may take to accept a connection
_PATIENCE = 1.5
_ALIKE = 0.75


def find_place(name: str) -> bool:
    """Look where a model could be, without loading anything.

    Args:
        name: As `melbo.load` takes it.

    Returns:
        Whether the hub may be asked for what is missing: false where it cannot be reached, and the
        model is one of those that were fetched from it before.

    Raises:
        MelboError: Nothing of this name is here, and the hub cannot be asked for it.
    """
    path = Path(name)
    if name == ALIAS:
        return True
    if os.path.exists(name):
        if path.is_dir() and not any((path / file).is_file() for file in _CHECKPOINT):
            raise MelboError(_nowhere(name, "the folder holds no config.json"))
        return True
    if name.lower().endswith(".gguf"):
        raise MelboError(f"no file {name}: expected a .gguf file{_meant(name)}")
    if not _HUB_ID.fullmatch(name):
        raise MelboError(_nowhere(name, "there is nothing at this path"))
    if "/" not in name and _alike(name, [ALIAS]):
        raise MelboError(_nowhere(name, "there is none of this name"))
    reached = not _offline() and _hub_answers()
    if not reached and not (_cache() / f"models--{name.replace('/', '--')}").is_dir():
        raise MelboError(_nowhere(name, "it is not on this machine, and the hub cannot be reached"))
    return reached


def _nowhere(name: str, why: str) -> str:
    """Message for a name that leads nowhere."""
    return (
        f"no model {name!r} ({why}): expected {ALIAS!r}, a hub id, a local folder with "
        f"config.json or a .gguf file{_meant(name)}"
    )


def _meant(name: str) -> str:
    """A name that is there and much alike, as the end of an error; nothing where there is none."""
    path = Path(name)
    try:
        beside = sorted(os.listdir(path.parent))
    except (OSError, ValueError):
        beside = []
    near = _alike(path.name, [ALIAS, *beside] if path.name == name else beside)
    near = [each for each in near if each != path.name]
    if not near:
        return ""
    there = near[0] if near[0] == ALIAS else str(path.parent / near[0])
    return f"; did you mean {there!r}?"


def _alike(name: str, known: list[str]) -> list[str]:
    """Known names that a name may be a slip of the pen for, the likeliest first."""
    lowered = {each.lower(): each for each in reversed(known)}
    return [lowered[each] for each in difflib.get_close_matches(name.lower(), lowered, 1, _ALIKE)]


def _offline() -> bool:
    """Tell whether the user has said that there is no network, as transformers reads it."""
    said = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(each.upper() in {"1", "ON", "YES", "TRUE"} for each in said)


def _cache() -> Path:
    """Folder of the models that were fetched from the hub."""
    if folder := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(folder).expanduser()
    usual = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HOME") or usual).expanduser() / "hub"


def _hub_answers() -> bool:
    """Tell whether the hub takes a connection; true where a proxy stands before it."""
    address = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    if address.scheme in urllib.request.getproxies():
        return True
    port = address.port or (80 if address.scheme == "http" else 443)
    reached = []

    def connect() -> None:
        try:
            socket.create_connection((address.hostname or "", port), _PATIENCE).close()
            reached.append(True)
        except OSError:
            pass

    # looking up a host's name has no time limit of its own
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return bool(reached)
