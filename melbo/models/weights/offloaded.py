"""Signs that weights which accelerate keeps elsewhere have changed, without fetching them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn


def kept_elsewhere(module: nn.Module) -> Iterator[Any]:
    """Tensors in memory and files on disk from which a module's own hooks fetch its weights.

    The maps that hold them come too, because an edit may put another in their place.

    Args:
        module: The module.
    """
    hook: Any = module.__dict__.get("_hf_hook")
    for one in getattr(hook, "hooks", (hook,)):
        weights = getattr(one, "weights_map", None)
        if not getattr(one, "offload", False) or weights is None:
            continue
        yield weights
        named = module.named_parameters(recurse=bool(one.place_submodules))
        for name in [name for name, p in named if p.is_meta]:
            yield _home(weights, name)


def file_facts(path: Path) -> tuple[int, ...]:
    """Size and time of the last change of a file; nothing where there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_size, found.st_mtime_ns


def _home(weights: Any, name: str) -> Tensor | Path | None:
    """Tensor or file behind a name in accelerate's map; None where neither is known."""
    while (inner := getattr(weights, "dataset", getattr(weights, "inner", None))) is not None:
        weights, name = inner, getattr(weights, "prefix", "") + name
    held = getattr(weights, "state_dict", weights if isinstance(weights, dict) else {})
    if name in held:
        found = held[name]
        return found if isinstance(found, Tensor) else None
    about = getattr(weights, "index", {}).get(name)
    if about is None:
        return None
    file = about.get("safetensors_file")
    return Path(file) if file else Path(weights.save_folder) / f"{name}.dat"
