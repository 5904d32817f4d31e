"""Weights known again: a digest of a model's parameters, wherever and however they are kept."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from melbo.models.weights.storage import is_offloaded, is_plain, read
from melbo.models.weights.wrapped import inside_wrapper, merged_weights

_MOST = 4096  # values of a parameter
# integers of quantised weights; int64 and bool are indices and masks
_PACKED = (torch.int8, torch.uint8, torch.int16, torch.int32)


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over every parameter's name, shape and up to 4096 evenly spaced values.

    Values are hashed as bfloat16, so that a model in float32 and the same in bfloat16 agree;
    float16 rounds differently. Offloaded weights count as they do in memory. Integers of quantised
    weights are hashed as they are, together with their scales. A model inside peft's wrapper has
    the digest of the model with its adapter merged, in the precision that it has.

    Args:
        model: The model.

    Raises:
        MelboError: The values of a parameter are nowhere to be found.
    """
    inner = inside_wrapper(model)
    away = inner is not None and any(p.is_meta for p in inner.parameters())
    if inner is not None and not away and not any(map(is_packed, inner.modules())):
        return _of_merged(inner)
    digest = hashlib.sha256()
    ties: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    for name, p in sorted(model.named_parameters()):
        # in memory, tied weights are one object and have one name
        if name in ties and is_offloaded(model, name):
            continue
        digest.update(f"{name}{tuple(p.shape)}".encode())
        value = read(model, name)
        if is_plain(value) or (value.is_floating_point() and type(value.data) is Tensor):
            some = _some(value.detach()).to(torch.bfloat16).view(torch.int16)
            digest.update(some.cpu().numpy().tobytes())
        else:
            for each in sorted(set(map(_raw, _tensors_in(value, set())))):
                digest.update(each)
    for name, module in model.named_modules():
        packed = [t for t in (*_own(module),) if t.dtype in _PACKED]
        if packed:
            state = getattr(getattr(module, "state", None), "SCB", None)  # of bitsandbytes
            packs = [t for t in (*module._buffers.values(), state) if isinstance(t, Tensor)]
            known = {_raw(t) for t in module._parameters.values() if t is not None}
            digest.update(name.encode())
            for each in sorted({_raw(t) for t in packs if t.device.type != "meta"} - known):
                digest.update(each)
    return digest.hexdigest()


def _of_merged(inner: nn.Module) -> str:
    """Digest of a model inside peft's wrapper, as its adapter merged would leave it."""
    parts = [
        (name, tuple(p.shape), _some(p).to(torch.bfloat16).view(torch.int16).cpu())
        for name, p in merged_weights(inner)
    ]
    digest = hashlib.sha256()
    for name, shape, some in sorted(parts, key=lambda part: part[0]):
        digest.update(f"{name}{shape}".encode())
        digest.update(some.numpy().tobytes())
    return digest.hexdigest()


def is_packed(module: nn.Module) -> bool:
    """Tell whether a module by itself holds weights as integers or in a tensor class of its own."""
    return any(
        t.dtype in _PACKED or type(t.data) is not Tensor or type(t) not in (Tensor, nn.Parameter)
        for t in _own(module)
    )


def _own(module: nn.Module) -> Iterator[Tensor]:
    for t in (*module._parameters.values(), *module._buffers.values()):
        if isinstance(t, Tensor) and (t.ndim > 1 or t.dtype in _PACKED):
            yield t


def _some(tensor: Tensor) -> Tensor:
    flat = tensor.reshape(-1)
    return flat[:: max(1, -(-flat.numel() // _MOST))]


def _raw(tensor: Tensor) -> bytes:
    """Digest of up to 4096 evenly spaced values as they are stored."""
    some = _some(tensor.detach().as_subclass(Tensor)).contiguous()
    return hashlib.sha256(some.view(torch.uint8).cpu().numpy().tobytes()).digest()


def _tensors_in(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Plain tensors that a quantised one is made of: integers, scales, tables."""
    if id(value) in seen or value is None or isinstance(value, (nn.Module, type)):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        names = getattr(value.data, "__tensor_flatten__", None)
        if names is not None:
            for name in names()[0]:
                yield from _tensors_in(getattr(value.data, name), seen)
            return
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors_in(each, seen)
        return
    for name, each in sorted(getattr(value, "__dict__", {}).items()):
        if not name.startswith("_"):
            yield from _tensors_in(each, seen)
