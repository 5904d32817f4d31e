"""Hooks that people put on a model, and changes made to it, noticed.

Libraries put hooks of their own on models (offloading, sharding, recording of hidden states). Those
act at every pass alike, and are no business of this module.
"""

from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from melbo.models.weights.offloaded import file_facts, kept_elsewhere

_LIBRARIES = ("transformers.", "torch.", "accelerate.")
# values of each weight that are compared, beside its version
_SAMPLE = 8

Change = Literal["modules", "hooks", "weights"]


def own_hooks(module: nn.Module) -> list[Any]:
    """Hooks on a module that no library put there, those before the pass first."""
    if not module._forward_pre_hooks and not module._forward_hooks:
        return []
    every = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return [hook for hook in every if not _home(hook).startswith(_LIBRARIES)]


def is_hooked(modules: Iterable[nn.Module]) -> bool:
    """Tell whether any of the modules, or a part of one, has a hook that no library put there."""
    return any(own_hooks(part) for module in modules for part in module.modules())


@contextmanager
def set_aside_hooks(modules: Iterable[nn.Module]) -> Generator[None, None, None]:
    """Take modules' own hooks, and those of their parts, off inside the ``with`` block."""
    parts = [part for module in modules for part in module.modules() if own_hooks(part)]
    kept = [(part, part._forward_pre_hooks, part._forward_hooks) for part in parts]
    try:
        for part, before, after in kept:
            part._forward_pre_hooks, part._forward_hooks = (
                OrderedDict((k, h) for k, h in hooks.items() if _home(h).startswith(_LIBRARIES))
                for hooks in (before, after)
            )
        yield
    finally:
        for part, before, after in kept:
            part._forward_pre_hooks, part._forward_hooks = before, after


def call_pre_hooks(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Show a module's own pre-hooks the arguments of a call, without making it.

    Args:
        module: The module.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """
    for key, hook in tuple(module._forward_pre_hooks.items()):
        if _home(hook).startswith(_LIBRARIES):
            continue
        if key in module._forward_pre_hooks_with_kwargs:
            hook(module, args, kwargs)
        else:
            hook(module, args)


def modules_around(model: nn.Module, part: nn.Module) -> list[nn.Module]:
    """The modules that a part lies in, the model itself first."""
    path = next((name for name, module in model.named_modules() if module is part), "")
    names = path.split(".")
    return [model.get_submodule(".".join(names[:i])) for i in range(len(names))] if path else []


class Snapshot:
    """State of some modules at one moment, with which later ones are compared.

    It holds their hooks and parts, and of their weights and settings what tells at little cost that
    they may have changed: identity, version, address, and a few values, which show edits that torch
    does not count as new versions. Of offloaded weights it is the same where they are kept in
    memory, and the size and time of their file elsewhere.

    Args:
        modules: The modules.

    Attributes:
        modules: The modules.
        hooked: Whether any of the modules has a hook that no library put there.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = tuple(modules)
        self.hooked = is_hooked(modules)
        # names of the settings of each module; a module that is new shows as a part
        self._names = {m: _setting_names(m) for root in modules for m in root.modules()}
        self._parts, self._hooks, self._weights = self._look()
        self._views = [_a_few(w) for w in self._tensors() if _plain(w)]
        self._values = _together(self._views)

    def change(self) -> Change | None:
        """Tell what may have changed since; ``"weights"`` include settings of modules."""
        parts, hooks, weights = self._look()
        if not _identical(parts, self._parts):
            return "modules"
        if not _identical(hooks, self._hooks):
            return "hooks"
        if weights != self._weights or not all(
            map(torch.equal, _together(self._views), self._values)
        ):
            return "weights"
        return None

    def _look(self) -> tuple[list[Any], list[Any], list[Any]]:
        """Modules and hooks, whose identity counts, and facts on weights, whose values do."""
        parts: list[Any] = []
        hooks: list[Any] = []
        weights: list[Any] = []
        for root in self.modules:
            for module in root.modules():
                parts.append(module)
                # some replace the method of a single module, libraries among them
                if "forward" in module.__dict__ and not hasattr(module, "_hf_hook"):
                    parts.append(module.__dict__["forward"])
                hooks += own_hooks(module)
                settings = module.__dict__
                for name in self._names.get(module, ()):
                    value = settings.get(name)
                    weights.append(tuple(value) if type(value) is list else value)
                for w in _weights(module):
                    weights += _facts(w)
                for kept in kept_elsewhere(module):
                    if isinstance(kept, Path):
                        weights += file_facts(kept)
                    elif not isinstance(kept, Tensor):
                        weights.append(_Same(kept))
        return parts, hooks, weights

    def _tensors(self) -> Iterator[Tensor]:
        return (w for root in self.modules for m in root.modules() for w in _weights(m))


class _Same:
    """An object that is equal to itself alone, and is kept so that no other takes its address."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def _home(hook: Any) -> str:
    """Name of the module of Python that a hook comes from."""
    hook = getattr(hook, "func", hook)  # of a partial
    return getattr(hook, "__module__", None) or ""


def _weights(module: nn.Module) -> Iterator[Tensor]:
    own = (w for w in module._parameters.values() if w is not None and w.device.type != "meta")
    return chain(own, (w for w in kept_elsewhere(module) if isinstance(w, Tensor)))


def _facts(weight: Tensor) -> tuple[int, ...]:
    version = 0 if weight.is_inference() else weight._version
    return id(weight), version, weight.data_ptr() if _plain(weight) else 0


def _setting_names(module: nn.Module) -> tuple[str, ...]:
    """Names of attributes that say how a module runs: flags, names, and lists of names.

    An adapter that is switched off shows here.
    """
    return tuple(
        name
        for name, value in module.__dict__.items()
        if type(value) in (bool, str)
        or (type(value) is list and all(type(each) is str for each in value))
    )


def _plain(weight: Tensor) -> bool:
    return type(weight) in (Tensor, nn.Parameter) and weight.numel() > 0 and weight.is_contiguous()


def _a_few(weight: Tensor) -> Tensor:
    """A view of a few values of a weight, which shows what happens to it."""
    flat = weight.detach().view(-1)
    return flat[:: -(-len(flat) // _SAMPLE)]


def _identical(one: Sequence[Any], two: Sequence[Any]) -> bool:
    return len(one) == len(two) and all(a is b for a, b in zip(one, two, strict=True))


def _together(views: Sequence[Tensor]) -> list[Tensor]:
    """Values of many views, in one tensor for each kind."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for view in views:
        groups.setdefault((view.device, view.dtype), []).append(view)
    return [torch.cat(group) for group in groups.values()]
