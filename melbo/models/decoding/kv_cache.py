"""A cache of keys and values with room to grow.

A new token is written in place, where transformers copies all earlier ones.
"""

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer

_ROOM = 32  # tokens allocated ahead


def give_room(cache: Any) -> Any:
    """Replace the plain growing layers of a cache by layers with room.

    Layers of other kinds (windows, states) are left as they are.
    """
    layers = getattr(cache, "layers", [])
    layers[:] = [
        _RoomyLayer(layer) if type(layer) is DynamicLayer and layer.is_initialized else layer
        for layer in layers
    ]
    return cache


class _RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers' own is untyped
    """A `DynamicLayer` that takes over another's keys and values ``[rows, heads, T, width]``."""

    keys: Tensor
    values: Tensor

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # likewise
        self.dtype, self.device, self.is_initialized = layer.dtype, layer.device, True
        assert layer.keys is not None
        assert layer.values is not None
        self.keys, self.values = layer.keys, layer.values
        self._grown_keys, self._grown_values = _Grown(), _Grown()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.keys = self._grown_keys.append(self.keys, key_states)
        self.values = self._grown_values.append(self.values, value_states)
        return self.keys, self.values


class _Grown:
    """A tensor that grows along its last axis but one."""

    last: Tensor | None = None  # last result of `append`, a view of ``room``
    room: Tensor

    def append(self, old: Tensor, new: Tensor) -> Tensor:
        """Join two tensors; ``old`` is not copied if it was returned last and there is room."""
        start, end = old.shape[-2], old.shape[-2] + new.shape[-2]
        if old is not self.last or end > self.room.shape[-2]:
            self.room = old.new_empty(*old.shape[:-2], end + _ROOM, old.shape[-1])
            self.room[..., :start, :] = old
        self.room[..., start:end, :] = new
        self.last = self.room[..., :end, :]
        return self.last
