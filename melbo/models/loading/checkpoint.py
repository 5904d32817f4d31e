"""Checkpoints held against the model they are read into: no weight missing, none left over."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import nn

from melbo.errors import MelboError

# saved by older versions of transformers, and computed anew by the model
_COMPUTED = re.compile(r"(inv_freq|masked_bias|position_ids|attn\.bias|attention\.bias)$")
_WRAPPERS = {
    "base_model.model.": "a peft wrapper's state: save model.merge_and_unload() instead",
    "module.": "a DataParallel wrapper's state: save model.module instead",
    "_orig_mod.": "a compiled module's state: save model._orig_mod instead",
    "_fsdp_wrapped_module.": "an FSDP wrapper's state: gather and save the model itself",
}


def require_complete(info: Mapping[str, Any], model: nn.Module, name: str) -> None:
    """Refuse a model into which not every weight was read, or that leaves some of the file out.

    Weights that transformers ties or computes are no fault, nor are parts of the file that have no
    place in the model at all, such as another head or a tower of vision.

    Args:
        info: What transformers says about the loading (``output_loading_info``).
        model: The model.
        name: Its name in messages.

    Raises:
        MelboError: Weights are missing, left over or of another shape; names some, and says what
            the file seems to be.
    """
    missing = sorted(info.get("missing_keys", ()))
    unexpected = sorted(info.get("unexpected_keys", ()))
    over = _left_over(unexpected, model)
    other = sorted(info.get("mismatched_keys", ()), key=lambda found: found[0])
    errors = [str(e).strip().splitlines()[0] for e in info.get("error_msgs", ()) if str(e).strip()]
    faults = []
    if missing:
        faults.append(f"it lacks {some(missing)}")
    if other:
        name_of_first, got, expected = other[0]
        faults.append(
            f"{name_of_first} has shape {tuple(got)}, expected {tuple(expected)}"
            + (f" (and {len(other) - 1} more)" if len(other) > 1 else "")
        )
    if over or (missing and unexpected):
        faults.append(f"it has {some(over or unexpected)} besides")
    if errors:
        faults.append(errors[0][:160])
    if faults:
        raise MelboError(
            f"the weights of {name} do not fill {type(model).__name__}: {'; '.join(faults)}: "
            f"{_advice(missing, unexpected, bool(other))}"
        )


def conversion_fault(err: BaseException) -> str | None:
    """Name the first weight that transformers could not make from the file's, and the reason.

    Its error says neither: they stand in a report that it logs, and in what it has found so far.

    Args:
        err: The error.

    Returns:
        Name and reason in one line; None for an error of another kind.
    """
    trace = err.__traceback__
    while trace is not None:
        found = getattr(trace.tb_frame.f_locals.get("loading_info"), "conversion_errors", None)
        if found:
            name, said = sorted(found.items())[0]
            lines = [line for line in str(said).splitlines() if line.strip()]
            reasons = [line for line in lines if not line.startswith("Error:")]
            return (
                f"{name} cannot be made of the tensors in the file "
                f"({reasons[-1].strip()[:160] if reasons else 'no reason given'}): "
                "download or save it again"
            )
        trace = trace.tb_next
    return None


def some(keys: Collection[str], most: int = 3) -> str:
    """A few of some names, and how many more there are."""
    shown = ", ".join(list(keys)[:most])
    return shown + (f" and {len(keys) - most} more" if len(keys) > most else "")


def _left_over(unexpected: Iterable[str], model: nn.Module) -> list[str]:
    """Keys that belong to a module that the model has, or to one more block than it has."""
    places = {_numberless(name) for name, _ in model.named_modules() if name}
    base = getattr(model, "base_model_prefix", "")
    found = []
    for key in unexpected:
        parts = _numberless(key).split(".")
        inside = {".".join(parts[:i]) for i in range(1, len(parts))}
        inside |= {f"{base}.{p}" for p in inside} if base else set()
        # a block of the model, or a module without modules of its own
        deep = any(p in places and ("#" in p or p not in _parents(places)) for p in inside)
        if deep and not _COMPUTED.search(key):
            found.append(key)
    return found


def _parents(places: Collection[str]) -> set[str]:
    return {p.rpartition(".")[0] for p in places}


def _numberless(name: str) -> str:
    return ".".join("#" if part.isdigit() else part for part in name.split("."))


def _advice(missing: Collection[str], unexpected: Collection[str], other: bool) -> str:
    """Say what the file seems to be, or what to do."""
    if any(".lora_" in key or ".base_layer." in key for key in unexpected):
        return "it seems to hold an adapter that is not merged: save model.merge_and_unload()"
    ends = set(missing)
    for prefix, says in _WRAPPERS.items():
        if any(key.startswith(prefix) for key in unexpected):
            return f"its names begin with {prefix!r}, it seems to be {says}"
    for key in unexpected:
        for i in range(1, key.count(".") + 1):
            prefix, rest = ".".join(key.split(".")[:i]) + ".", ".".join(key.split(".")[i:])
            if rest in ends:
                return f"its names begin with {prefix!r}: save them without it"
    if any(re.search(r"(SCB|absmax|quant_state|scale|zeros|packed)", key) for key in unexpected):
        return "it seems to hold quantised weights whose quantization_config is lost"
    if any(re.search(r"(score|classifier|v_head|value_head)", key) for key in unexpected):
        return "it seems to be a classifier or reward model: load a causal language model"
    if other:
        return (
            "config.json is of another model, or a quantiser has packed the weights and its "
            "quantization_config is lost; download or save it again"
        )
    return "it may be a part of a checkpoint or of another architecture; download or save it again"
