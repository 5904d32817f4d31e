"""Weights of a model inside peft's wrapper, as they are once its adapter is merged."""

import warnings
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from torch import Tensor, nn


def inside_wrapper(model: nn.Module) -> nn.Module | None:
    """Find the model inside peft's wrapper; None for one without adapters beside its layers."""
    inner = getattr(getattr(model, "base_model", None), "model", None)
    wrapped = hasattr(model, "peft_config") and isinstance(inner, nn.Module)
    return inner if wrapped and isinstance(inner, nn.Module) and _adapted(inner) else None


def merged_weights(inner: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and values of the parameters that peft's ``merge_and_unload`` would leave.

    One layer at a time is copied and merged, by peft's own code: the values are those of the merged
    model bit by bit, where both are merged in one precision.

    Args:
        inner: The model inside the wrapper.

    Yields:
        A name and a value, in no order.
    """
    adapted = _adapted(inner)
    held = {id(p) for layer in adapted.values() for p in layer.parameters()}
    yield from ((name, p.detach()) for name, p in inner.named_parameters() if id(p) not in held)
    for path, layer in adapted.items():
        for own, p in _merged(layer).named_parameters():
            yield f"{path}.{own}", p.detach()


def _adapted(inner: nn.Module) -> dict[str, nn.Module]:
    """Layers with an adapter beside them, the outermost of each, by name."""
    found: dict[str, nn.Module] = {}
    for name, module in inner.named_modules():
        outer = any(name.startswith(f"{path}.") for path in found)
        if not outer and hasattr(module, "merged_adapters"):
            found[name] = module
    return found


def _merged(layer: Any) -> nn.Module:
    """The layer that merging leaves in the place of one with adapters, which is not changed."""
    if layer.disable_adapters:
        trained_whole = hasattr(layer, "original_module")
        found: nn.Module = layer.original_module if trained_whole else layer.get_base_layer()
        return found
    copied = deepcopy(layer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that something is merged already
        if hasattr(copied, "unload_and_optionally_merge_module"):
            found = copied.unload_and_optionally_merge_module(
                merge=True, safe_merge=False, adapter_names=None
            )
            return found
        copied.merge()
    found = copied.get_base_layer()
    return found
