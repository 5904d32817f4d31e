"""Weights where they are kept: in memory, offloaded by accelerate, or packed by a quantiser."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from melbo.errors import MelboError

_PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_HOOKED = ("forward", "_hf_hook", "_old_forward")  # what accelerate puts on a module


@dataclass(frozen=True)
class Change:
    """A new value for one weight of a model.

    Attributes:
        name: Dotted name of the weight.
        compute: Makes the new value from the old one; the result is rounded to the weight's dtype.
    """

    name: str
    compute: Callable[[Tensor], Tensor]


def read(model: nn.Module, name: str) -> Tensor:
    """Read a parameter or buffer, wherever it is kept.

    Args:
        model: The model.
        name: Dotted name of the tensor.

    Raises:
        MelboError: Its values are nowhere to be found.
    """
    path, _, own = name.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(path), own)
    if tensor.device.type != "meta":
        return tensor
    hook, key = _offloaded(model, name)
    value: Tensor = hook.weights_map[key]
    return value


def is_offloaded(model: nn.Module, name: str) -> bool:
    """Tell whether accelerate keeps a parameter elsewhere than in its module."""
    return next(_hooks(model, name), None) is not None


def device_of(module: nn.Module) -> torch.device:
    """Device on which a module with weights runs, wherever it keeps them."""
    found = next(module.parameters()).device
    hook: Any = module.__dict__.get("_hf_hook")
    places = [getattr(h, "execution_device", None) for h in getattr(hook, "hooks", (hook,))]
    there = next((place for place in places if place is not None), None)
    return torch.device(there) if found.type == "meta" and there is not None else found


def is_plain(tensor: Tensor) -> bool:
    """Tell whether a tensor holds its numbers as they are, not packed or scaled."""
    whole = type(tensor) in (Tensor, nn.Parameter) and type(tensor.data) is Tensor
    return whole and tensor.dtype in _PLAIN


def require_plain(module: nn.Module, tensor: Tensor, name: str) -> None:
    """Refuse a matrix that cannot be edited as it is stored.

    Args:
        module: Module that holds the matrix.
        tensor: The matrix.
        name: Its name in messages.

    Raises:
        MelboError: It is quantised, packed, split over processes, or computed from other tensors.
    """
    own = name.rpartition(".")[2]
    if own not in module._parameters:
        kind = f"computed by {type(module).__name__}"
    elif not is_plain(tensor):
        number = str(tensor.dtype).removeprefix("torch.")
        kind = f"kept as {type(tensor.data).__name__} of {number} by {type(module).__name__}"
    elif isinstance(module, nn.Linear) and own == "weight":
        expected = (module.out_features, module.in_features)
        if tuple(tensor.shape) == expected:
            return
        kind = f"of shape {tuple(tensor.shape)}, not {expected}"
    else:
        return
    raise MelboError(
        f"the weights of {name} cannot be edited, they are {kind}: "
        "load the model unquantised, in bfloat16 for instance"
    )


@contextmanager
def changed(model: nn.Module, changes: Sequence[Change]) -> Generator[None, None, None]:
    """Change weights inside the ``with`` block; afterwards they are what they were, bit by bit.

    Offloaded weights are changed whenever they are fetched, and take no more memory.

    Args:
        model: The model.
        changes: The changes; a tensor that two of them share under one object is changed once.

    Raises:
        MelboError: The values of a weight are nowhere to be found.
    """
    undo: list[Callable[[], object]] = []
    seen: set[int | str] = set()
    try:
        with torch.no_grad():
            for change in changes:
                if is_offloaded(model, change.name):
                    for name in {change.name, *_tied(model, change.name)} - seen:
                        seen.add(name)
                        undo.append(_change_offloaded(model, name, change.compute))
                    continue
                tensor = read(model, change.name)
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    kept = tensor.detach().clone()
                    undo.append(partial(tensor.copy_, kept))
                    tensor.copy_(change.compute(tensor.detach()))
        yield
    finally:
        with torch.no_grad():
            for step in reversed(undo):
                step()


def in_memory(model: nn.Module, path: str) -> nn.Module:
    """Copy a module of a model, with all of its weights in memory and without accelerate's hooks.

    Args:
        model: The model.
        path: Dotted name of the module.

    Raises:
        MelboError: The values of a weight are nowhere to be found.
    """
    module = model.get_submodule(path)
    # not to be copied: hooks hold maps of all offloaded weights
    memo: dict[int, Any] = {
        id(m.__dict__[key]): None
        for m in module.modules()
        if "_hf_hook" in m.__dict__
        for key in _HOOKED
        if key in m.__dict__
    }
    copied = deepcopy(module, memo)
    for name, m in copied.named_modules():
        if "_hf_hook" in m.__dict__:
            for key in _HOOKED:
                m.__dict__.pop(key, None)
        full = ".".join(part for part in (path, name) if part)
        for own, p in list(m._parameters.items()):
            if p is not None and p.device.type == "meta":
                value = _fetched(model, f"{full}.{own}")
                m._parameters[own] = nn.Parameter(value, requires_grad=False)
        for own, b in list(m._buffers.items()):
            if b is not None and b.device.type == "meta":
                m._buffers[own] = _fetched(model, f"{full}.{own}")
    return copied


def has_hooks(module: nn.Module) -> bool:
    """Tell whether accelerate moves a module's weights or inputs about."""
    return any("_hf_hook" in m.__dict__ for m in module.modules())


class _Changed(Mapping[str, Tensor]):
    """Accelerate's map of weights, one of them changed."""

    def __init__(
        self, inner: Mapping[str, Tensor], key: str, compute: Callable[[Tensor], Tensor]
    ) -> None:
        self.inner, self._key, self._compute = inner, key, compute

    def __getitem__(self, key: str) -> Tensor:
        value = self.inner[key]
        return self._compute(value).to(value.dtype).contiguous() if key == self._key else value

    def __iter__(self) -> Iterator[str]:
        return iter(self.inner)

    def __len__(self) -> int:
        return len(self.inner)


def _change_offloaded(
    model: nn.Module, name: str, compute: Callable[[Tensor], Tensor]
) -> Callable[[], None]:
    """Change an offloaded weight; returns what undoes it."""
    hook, key = _offloaded(model, name)
    inner = hook.weights_map
    hook.weights_map = _Changed(inner, key, compute)
    return lambda: setattr(hook, "weights_map", inner)


def _fetched(model: nn.Module, name: str) -> Tensor:
    hook, key = _offloaded(model, name)
    value: Tensor = hook.weights_map[key]
    device = hook.execution_device
    return value.clone() if device is None else value.to(device, copy=True)


def _hooks(model: nn.Module, name: str) -> Iterator[tuple[Any, str]]:
    """Accelerate's hooks that fetch a tensor, each with its name for it."""
    parts = name.split(".")
    for i in range(len(parts) - 1, -1, -1):
        hook: Any = model.get_submodule(".".join(parts[:i])).__dict__.get("_hf_hook")
        for one in getattr(hook, "hooks", (hook,)):
            fetches = getattr(one, "offload", False) and one.weights_map is not None
            if fetches and (i == len(parts) - 1 or one.place_submodules):
                yield one, ".".join(parts[i:])


def _offloaded(model: nn.Module, name: str) -> tuple[Any, str]:
    found = next(_hooks(model, name), None)
    if found is None:
        raise MelboError(
            f"the values of {name} are nowhere in memory (meta device) and no hook of accelerate "
            "fetches them: load the model again, with device_map='auto' or on one device"
        )
    return found


def _tied(model: nn.Module, name: str) -> list[str]:
    """Other names of an offloaded weight that are tied to it."""
    ties: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    source = ties.get(name, name)
    group = {source, *(target for target, of in ties.items() if of == source)}
    return sorted(other for other in group - {name} if is_offloaded(model, other))
