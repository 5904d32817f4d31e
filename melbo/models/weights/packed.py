"""Packed weights of quantised layers in the one form that has derivatives, and tried for them."""

import torch
from torch import Tensor, nn

from melbo.errors import MelboError
from melbo.models.replay import Slice
from melbo.models.weights.fingerprint import is_packed

_STEP = 0.05  # of a finite difference, as a share of the stream's size
_LOST = 0.3  # share of what a block adds to a derivative that may be missing


def has_packed(module: nn.Module) -> bool:
    """Tell whether any part of a module holds packed weights."""
    return any(map(is_packed, module.modules()))


def keep_as_loaded(model: nn.Module) -> None:
    """Keep bitsandbytes from packing weights of 4 bits anew for one kind of processor.

    It does so at the first pass without gradient on a CPU. The layer has no derivative from then on
    (torch takes it for a constant), and the bytes are no longer those of other machines.

    Args:
        model: The model; without such layers nothing is done.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.state_dict()  # turns weights that are packed anew back
            module.__dict__["support_avx512bf16_for_cpu"] = False


def require_derivatives(part: Slice) -> None:
    """Refuse packed weights through which no derivative passes.

    Kernels without a backward pass count as constants, silently: what a block adds would be missing
    in every derivative. One block at a time is compared with a finite difference along noise.

    Args:
        part: The slice; blocks without packed weights are not tried.

    Raises:
        MelboError: What a block adds is missing in a derivative; names the block.
    """
    hidden = part.hidden
    for i, call in enumerate(part.calls):
        with torch.no_grad():
            [(_, leaving)] = Slice.trace(_one(part, i, hidden), hidden)
        if has_packed(call.block):
            _require_derivative(_one(part, i, hidden), call.index)
        hidden = leaving


def _one(part: Slice, i: int, hidden: Tensor) -> Slice:
    """The i-th block of a slice, entered by another stream."""
    return Slice((part.calls[i],), hidden, hidden, part.mask, part.axes, part.around)


def _require_derivative(part: Slice, index: int) -> None:
    h = part.hidden
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(h.shape, generator=generator).to(h)
    v = _STEP * noise * h.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
    real = part.mask.to(h.device)[:, :, None]
    with torch.no_grad():
        change = (part.replay(h + v).float() - part.replay(h - v).float()) / 2
    added = (change - v.float()) * real
    entering = h.clone().requires_grad_()
    with torch.enable_grad():
        out = part.replay(entering).float()
        [gradient] = torch.autograd.grad((out * added).sum(), entering, allow_unused=True)
    found = 0.0 if gradient is None else float((gradient.float() * v.float()).sum())
    missing = float((change * added).sum()) - found
    if not abs(missing) <= _LOST * float(added.square().sum()):
        raise MelboError(
            f"the quantised weights of block {index} have no (right) derivative on this device, "
            "so nothing can be fitted there: load the model unquantised, or on a GPU"
        )
