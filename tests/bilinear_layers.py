"""Small bilinear layers with random weights, and gated modules."""

import torch
from torch import nn

from melbo.bilinear import Bilinear


def normal(*shape, seed=0, dtype=torch.float64):
    """A tensor of standard normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def random_layer(d=6, h=9, d_out=5, seed=0, dtype=torch.float64):
    """A bilinear layer whose widths all differ."""
    shapes = (h, d), (h, d), (d_out, h)
    return Bilinear(*(normal(*shape, seed=seed + i, dtype=dtype) for i, shape in enumerate(shapes)))


class Gated(nn.Module):
    """down[act(gate x) * up x], under transformers' names."""

    def __init__(self, act_fn, d=6, h=9, d_out=5, bias=False):
        super().__init__()
        torch.manual_seed(0)
        self.gate_proj = nn.Linear(d, h, bias=bias, dtype=torch.float64)
        self.up_proj = nn.Linear(d, h, bias=False, dtype=torch.float64)
        self.down_proj = nn.Linear(h, d_out, bias=False, dtype=torch.float64)
        self.act_fn = act_fn

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
