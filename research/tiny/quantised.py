"""Stand-ins for quantised layers, which hold their weights as bitsandbytes and others do."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Int8(nn.Linear):
    """Integers ``[out, in]`` and a scale for each row, a buffer."""

    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False)
        scale = linear.weight.abs().amax(1) / 127
        whole = (linear.weight / scale[:, None]).round().to(torch.int8)
        self.weight = nn.Parameter(whole, requires_grad=False)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """See `nn.Linear`."""
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale[:, None].to(x.dtype))


class Packed4(nn.Linear):
    """Two numbers in each of out·in / 2 bytes, in one column; scales in the weight's own object."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False)
        scale = linear.weight.abs().amax() / 7
        codes = ((linear.weight / scale).round() + 8).to(torch.uint8).reshape(-1, 2)
        packed: Any = nn.Parameter((codes[:, :1] << 4) | codes[:, 1:], requires_grad=False)
        packed.quant_state = type("State", (), {})()
        packed.quant_state.absmax = scale
        packed.module = self  # as bitsandbytes has it
        self.weight: Any = packed

    def forward(self, x: Tensor) -> Tensor:
        """See `nn.Linear`."""
        codes = torch.cat([self.weight >> 4, self.weight & 15], 1).to(x.dtype) - 8
        W = codes.reshape(self.out_features, self.in_features) * self.weight.quant_state.absmax
        return nn.functional.linear(x, W.to(x.dtype))


class Gptq(nn.Module):
    """No linear layer at all: four numbers in an integer of 32 bits, all in buffers."""

    qweight: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.shape = linear.weight.shape
        scale = linear.weight.abs().amax(1) / 127
        codes = ((linear.weight / scale[:, None]).round() + 128).to(torch.int64).reshape(-1, 4)
        shifts = torch.tensor([0, 8, 16, 24])
        self.register_buffer("qweight", (codes << shifts).sum(1).to(torch.int32).reshape(-1, 1))
        self.register_buffer("scales", scale)

    def forward(self, x: Tensor) -> Tensor:
        """See `nn.Linear`."""
        codes = (self.qweight.long() >> torch.tensor([0, 8, 16, 24])) & 255
        W = (codes.reshape(self.shape).to(x.dtype) - 128) * self.scales[:, None].to(x.dtype)
        return nn.functional.linear(x, W)


class Float8(nn.Linear):
    """Floating-point numbers of eight bits, and a scale."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False)
        scale = linear.weight.abs().amax() / 400
        eight = (linear.weight / scale).to(torch.float8_e4m3fn)
        self.weight = nn.Parameter(eight, requires_grad=False)
        self.weight_scale_inv = nn.Parameter(scale.reshape(1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """See `nn.Linear`."""
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.weight_scale_inv.to(x.dtype))


KINDS: dict[str, Any] = {kind.__name__: kind for kind in (Int8, Packed4, Gptq, Float8)}


def quantised(model: Any, kind: str, inside: Sequence[str] = ("self_attn", "mlp")) -> Any:
    """Quantise the linear layers of a model's blocks, in place.

    Args:
        model: The model.
        kind: Name of the stand-in.
        inside: Parts of a block whose layers are quantised.
    """
    with torch.no_grad():
        for block in model.model.layers:
            for part in inside:
                holder = getattr(block, part)
                for name, module in list(holder.named_children()):
                    if type(module) is nn.Linear:
                        setattr(holder, name, KINDS[kind](module))
    return model
