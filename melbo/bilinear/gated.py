"""Bilinear layers from gated MLPs, by leaving out the non-linearity of the gate.

A gated MLP computes down[act(gate x) ⊙ (up x)]. Without act it is bilinear, with L = gate, R = up
and D = down.
"""

import torch
from torch import Tensor, nn

from melbo.bilinear.gate import Act, GatedMLP, identity
from melbo.bilinear.layer import Bilinear
from melbo.errors import MelboError
from melbo.models.language_model import LanguageModel
from melbo.models.weights.storage import device_of, is_plain, read

NAMES = ("gate_proj", "up_proj", "down_proj")


def from_block(lm: LanguageModel, block: int, dtype: torch.dtype | None = None) -> Bilinear:
    """Bilinear layer with the weights of a block's gated MLP, its non-linearity left out.

    It reads what the MLP reads, which in nearly all models is the stream after a norm.

    Args:
        lm: The model.
        block: Index of the block, from 0.
        dtype: Precision of the layer; the model's own, float32 at least, if left out.

    Raises:
        MelboError: There is no such block, or it has none or several gated MLPs.
    """
    return from_module(gated_module(lm, block), dtype=dtype)


def gated_module(lm: LanguageModel, block: int) -> nn.Module:
    """The gated MLP of a block, found by the names of its layers.

    Args:
        lm: The model.
        block: Index of the block, from 0.

    Raises:
        MelboError: There is no such block, or it has none or several gated MLPs.
    """
    if not 0 <= block < lm.depth:
        raise MelboError(f"block is {block}: expected 0 to {lm.depth - 1}, the blocks of {lm.name}")
    modules = lm.blocks[block].named_modules()
    found = {path: m for path, m in modules if all(hasattr(m, name) for name in NAMES)}
    if not found:
        raise MelboError(
            f"block {block} of {lm.name} has no gated MLP with {', '.join(NAMES)}: "
            "pass its module and the names of its layers to melbo.bilinear.from_module"
        )
    if len(found) > 1:
        few = ", ".join([*found][:3]) + (", …" if len(found) > 3 else "")
        raise MelboError(
            f"block {block} of {lm.name} has {len(found)} gated MLPs ({few}): "
            "pass one of them to melbo.bilinear.from_module"
        )
    module: nn.Module = next(iter(found.values()))
    return module


def from_module(
    module: nn.Module,
    names: tuple[str, str, str] = NAMES,
    activation: Act | None = None,
    dtype: torch.dtype | None = None,
) -> Bilinear:
    """Bilinear layer with the weights of a module, its non-linearity left out.

    Args:
        module: A module that computes down[act(gate x) ⊙ (up x)] without biases.
        names: Its linear layers: gate, up and down.
        activation: act; if left out, the module's ``act_fn``, or none if it has none.
        dtype: Precision of the layer; the module's own, float32 at least, if left out.

    Raises:
        MelboError: As `gated_mlp`.
    """
    return gated_mlp(module, names, activation, dtype).weights


def gated_mlp(
    module: nn.Module,
    names: tuple[str, str, str] = NAMES,
    activation: Act | None = None,
    dtype: torch.dtype | None = None,
) -> GatedMLP:
    """Weights and non-linearity of a module.

    The module is run once on random input, so that one which computes something else is refused.
    Weights are copied.

    Args:
        module: A module that computes down[act(gate x) ⊙ (up x)] without biases.
        names: Its linear layers: gate, up and down.
        activation: act; if left out, the module's ``act_fn``, or none if it has none.
        dtype: Precision of the layer; the module's own, float32 at least, if left out.

    Raises:
        MelboError: A linear layer is missing, quantised or biased, or the module computes something
            else.
    """
    kind = type(module).__name__
    weights = [_weight(module, kind, name) for name in names]
    precision = dtype or torch.promote_types(weights[0].dtype, torch.float32)
    L, R, D = (weight.detach().to(precision, copy=True) for weight in weights)
    layer = GatedMLP(Bilinear(L, R, D), activation or getattr(module, "act_fn", None) or identity)
    device = device_of(getattr(module, names[0]))
    off = _difference(module, layer, _random_input(layer.weights).to(device, weights[0].dtype))
    tolerance = 1e-3 if weights[0].dtype in (torch.float32, torch.float64) else 5e-2
    if not off < tolerance:
        gate, up, down = names
        raise MelboError(
            f"{kind} differs from {down}[act({gate} x) * {up} x] by {off:.1e}: expected a gated "
            "MLP; check the order of names, and pass activation= if its own is not act_fn"
        )
    return layer


def _weight(module: nn.Module, kind: str, name: str) -> Tensor:
    """Weight of one of the module's linear layers.

    Raises:
        MelboError: It is no plain linear layer without bias.
    """
    linear = getattr(module, name, None)
    if not isinstance(linear, nn.Linear):
        raise MelboError(
            f"{kind} has no linear layer {name!r}: "
            "pass names=(gate, up, down) as print(module) shows them"
        )
    if linear.bias is not None:
        raise MelboError(
            f"{name} of {kind} has a bias, which makes the layer other than bilinear: "
            "expected linear layers without bias"
        )
    weight = read(module, f"{name}.weight")
    if not is_plain(weight):
        raise MelboError(
            f"the weights of {name} are packed or quantised: load the model unquantised, "
            "in bfloat16 for instance"
        )
    return weight


def _random_input(layer: Bilinear) -> Tensor:
    """Standard normal activations of one prompt, ``[1, 4, d]``."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 4, layer.width, generator=generator, dtype=torch.float64)


def _difference(module: nn.Module, layer: GatedMLP, x: Tensor) -> float:
    """Largest difference of a module from D[act(Lx) ⊙ Rx] at x, over the largest value.

    Raises:
        MelboError: The module does not run on rows.
    """
    expected = layer(x[0])[None]
    try:
        with torch.no_grad():
            y = module(x)
    # a module of one's own may fail in a way of its own; the user needs the one line
    except Exception as err:
        raise MelboError(
            f"{type(module).__name__} does not run on an input [1, 4, {layer.weights.width}] "
            f"({type(err).__name__}): expected a module from activations to activations"
        ) from err
    if not isinstance(y, Tensor) or y.shape != expected.shape:
        return float("inf")
    return ((y.to(expected) - expected).abs().max() / expected.abs().max()).item()
