"""Gated MLPs with their non-linearity, and their expansions at an activation."""

import pytest
import torch
from bilinear_layers import Gated, normal, random_layer
from torch import nn

from melbo.bilinear.gate import GatedMLP
from melbo.bilinear.gated import gated_mlp

EXACT = {"rtol": 1e-10, "atol": 1e-10}
ACTS = [nn.SiLU(), nn.GELU(), nn.GELU(approximate="tanh"), torch.tanh]


@pytest.mark.parametrize("act", [*ACTS, nn.ReLU()])
def test_it_is_the_module(act):
    module, x = Gated(act), normal(4, 6)
    assert torch.allclose(gated_mlp(module)(x), module(x).detach(), **EXACT)


@pytest.mark.parametrize("act", ACTS)
def test_taylor_terms_are_the_derivatives_along_s(act):
    mlp, x, s = GatedMLP(random_layer(), act), normal(4, 6, seed=5), normal(4, 6, seed=6)

    def along(alpha):
        return mlp(x + alpha * s)

    zero = torch.zeros((), dtype=torch.float64)
    first = torch.func.jacfwd(along)
    taylor = mlp.taylor(x, s)
    assert torch.allclose(taylor.base, mlp(x), **EXACT)
    assert torch.allclose(taylor.cross, first(zero), **EXACT)
    assert torch.allclose(2 * taylor.self, torch.func.jacfwd(first)(zero), **EXACT)


@pytest.mark.parametrize("act", ACTS)
def test_tangent_is_the_layer_whose_gate_is_a_line(act):
    layer, x, s = random_layer(), normal(3, 6, seed=5), normal(3, 6, seed=6)
    split = GatedMLP(layer, act).tangent(x, s)
    for row in range(3):
        z = layer.L @ x[row]
        slope = torch.func.jvp(act, (z,), (torch.ones_like(z),))[1]
        for alpha in (-2.0, 0.5, 3.0):
            gate = act(z) + alpha * slope * (layer.L @ s[row])
            expected = layer.D @ (gate * (layer.R @ (x[row] + alpha * s[row])))
            assert torch.allclose(split.at(alpha)[row], expected, **EXACT)


def test_without_a_non_linearity_all_are_the_split_of_the_weights():
    layer, x, s = random_layer(), normal(4, 6, seed=5), normal(1, 6, seed=6)
    mlp, split = GatedMLP(layer), layer.split(x, s)
    for found in (mlp.tangent(x, s), mlp.taylor(x, s)):
        for own, expected in zip(found, split, strict=True):
            assert torch.allclose(own, expected, **EXACT)
    assert torch.allclose(mlp(x), layer(x), **EXACT)
