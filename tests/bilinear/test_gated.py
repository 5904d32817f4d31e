import pytest
import torch
from bilinear_layers import Gated, normal
from cases import TINY, tiny_model, tiny_tokenizer
from offloaded import offloaded
from quantised import quantised
from torch import nn

from melbo import LanguageModel, MelboError
from melbo.bilinear import from_block, from_module


def test_a_module_without_a_step_is_the_layer_itself():
    module = Gated(nn.Identity())
    layer, x = from_module(module), normal(4, 6)
    assert torch.allclose(layer(x), module(x).detach(), atol=1e-12)


@pytest.mark.parametrize("act", [nn.SiLU(), nn.GELU(), nn.ReLU(), torch.tanh])
def test_split_of_a_gated_module_is_that_of_its_twin_without_activation(act):
    module, x, s = Gated(act), normal(4, 6, seed=5), normal(4, 6, seed=6)
    split = from_module(module).split(x, s)
    module.act_fn = nn.Identity()

    def along(alpha):
        return module(x + alpha * s)

    zero = torch.zeros((), dtype=torch.float64)
    first = torch.func.jacfwd(along)
    assert torch.allclose(split.cross, first(zero), atol=1e-12)
    assert torch.allclose(2 * split.self, torch.func.jacfwd(first)(zero), atol=1e-12)
    # and by finite differences, which are exact for a parabola
    up, down = along(2.0).detach(), along(-2.0).detach()
    assert torch.allclose(split.cross, (up - down) / 4, atol=1e-12)
    assert torch.allclose(split.self, (up + down - 2 * split.base) / 8, atol=1e-12)
    assert torch.allclose(split.at(3.0), along(3.0).detach(), atol=1e-12)


def test_names_and_activation_of_a_module_of_ones_own():
    class Own(Gated):
        def forward(self, x):
            return self.w2(torch.relu(self.w1(x)) * self.w3(x))

    module = Own(None)
    module.w1, module.w3, module.w2 = module.gate_proj, module.up_proj, module.down_proj
    layer = from_module(module, ("w1", "w3", "w2"), torch.relu)
    assert torch.equal(layer.L, module.w1.weight)
    assert torch.equal(layer.R, module.w3.weight)
    assert torch.equal(layer.D, module.w2.weight)
    # the gate and the other projection swapped, or the activation left out
    with pytest.raises(MelboError, match="expected a gated MLP; check the order"):
        from_module(module, ("w3", "w1", "w2"), torch.relu)
    with pytest.raises(MelboError, match="expected a gated MLP; check the order"):
        from_module(module, ("w1", "w3", "w2"))


def test_weights_are_copied():
    module = Gated(nn.SiLU())
    layer = from_module(module)
    before = layer(normal(2, 6))
    with torch.no_grad():
        module.gate_proj.weight.zero_()
    assert torch.equal(layer(normal(2, 6)), before)
    assert not layer.L.requires_grad


def test_half_precision_becomes_single():
    layer = from_module(Gated(nn.SiLU()).bfloat16())
    assert layer.D.dtype == torch.float32
    assert from_module(Gated(nn.SiLU()), dtype=torch.float32).D.dtype == torch.float32


def test_modules_that_are_no_gated_mlp_are_refused():
    with pytest.raises(MelboError, match="gate_proj of Gated has a bias"):
        from_module(Gated(nn.SiLU(), bias=True))
    with pytest.raises(MelboError, match="Linear has no linear layer 'gate_proj'"):
        from_module(nn.Linear(3, 3))

    class Doubled(Gated):
        def forward(self, x):
            return 2 * super().forward(x)

    class Pair(Gated):
        def forward(self, x):
            return super().forward(x), None

    class Broken(Gated):
        def forward(self, x):
            raise KeyError("cache")

    for kind in (Doubled, Pair):
        with pytest.raises(MelboError, match=f"{kind.__name__} differs from down_proj"):
            from_module(kind(nn.SiLU()))
    with pytest.raises(MelboError, match="Broken does not run on an input .* \\(KeyError\\)"):
        from_module(Broken(nn.SiLU()))


def test_a_block_of_a_model():
    lm = tiny_model("llama")
    layer = from_block(lm, 1)
    mlp = lm.blocks[1].mlp
    x = normal(3, lm.width)
    hidden = mlp.act_fn(x @ layer.L.T) * (x @ layer.R.T)
    assert torch.allclose(hidden @ layer.D.T, mlp(x), atol=1e-12)
    assert layer.map(x).d_target == lm.width


def test_weights_that_are_offloaded_are_read():
    layer, whole = (
        from_block(lm, 0) for lm in (offloaded("llama", "cpu", torch.float64), tiny_model("llama"))
    )
    for name in "LRD":
        assert torch.equal(getattr(layer, name), getattr(whole, name))


@pytest.mark.parametrize("kind", ["Int8", "Packed4"])
def test_quantised_weights_are_refused(kind):
    lm = LanguageModel(quantised(TINY["llama"]().float(), kind), tiny_tokenizer())
    with pytest.raises(MelboError, match="the weights of gate_proj are packed or quantised"):
        from_block(lm, 0)


@pytest.mark.parametrize("name", ["gpt2", "mixtral"])
def test_blocks_without_one_gated_mlp_are_refused(name):
    with pytest.raises(MelboError, match=f"block 0 of {name} has no gated MLP"):
        from_block(tiny_model(name), 0)


def test_several_gated_mlps_in_a_block_are_refused():
    lm = tiny_model("llama")
    lm.blocks[0].second = Gated(nn.SiLU())
    with pytest.raises(MelboError, match="block 0 of llama has 2 gated MLPs \\(mlp, second\\)"):
        from_block(lm, 0)


@pytest.mark.parametrize("block", [-1, 99])
def test_blocks_that_are_not_there_are_refused(block):
    with pytest.raises(MelboError, match=f"block is {block}: expected 0 to"):
        from_block(tiny_model("llama"), block)
