"""Quantised weights: known again, steered, and edited by nobody."""

import pytest
import torch
from adapters import BAND, TARGET
from cases import TINY, prompts, tiny_tokenizer
from quantised import KINDS, quantised
from toys import directions

from melbo import CPE, AdapterMap, CausalMap, LanguageModel, MelboError, Random, ablate, fit, steer
from melbo.models.weights.fingerprint import fingerprint
from melbo.models.weights.output_matrices import attention_output

IDS = torch.tensor([[5, 9, 17, 23, 31, 40]])


def tiny(kind, name="llama"):
    return LanguageModel(quantised(TINY[name]().float(), kind), tiny_tokenizer(), name=name)


@torch.no_grad()
def logits(lm):
    return lm.model(IDS).logits


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3"])
@pytest.mark.parametrize("kind", KINDS)
def test_ablation_is_refused_and_nothing_is_changed(kind, name):
    lm = tiny(kind, name)
    before = logits(lm)
    V = directions(1, lm.width).float()
    with (
        pytest.raises(MelboError, match="cannot be edited.*unquantised") as err,
        ablate(lm, V),
    ):
        pass
    assert "\n" not in str(err.value)
    assert torch.equal(logits(lm), before)


@pytest.mark.parametrize("kind", KINDS)
def test_what_attention_adds_is_still_read(kind):
    lm = tiny(kind)
    assert attention_output(lm, 1).summand is lm.blocks[1].self_attn.o_proj
    cmap = CausalMap(lm, prompts([6, 4]), 1, 3, read="attention")
    assert torch.isfinite(cmap.value(torch.ones(1, lm.width))).all()


@pytest.mark.parametrize("kind", ["Int8", "Packed4", "Float8"])
def test_adapters_steer_and_are_not_merged(kind):
    lm = tiny(kind)
    amap = AdapterMap(lm, prompts([6, 4]), BAND, TARGET)
    bank = fit(amap, CPE(num_factors=1, scale=2.0, max_steps=1), progress=False).features
    before = logits(lm)
    with steer(lm, bank[0]):
        assert not torch.allclose(logits(lm), before)
    with pytest.raises(MelboError, match="cannot be edited.*unquantised"), bank[0].merge(lm):
        pass
    assert torch.equal(logits(lm), before)


@pytest.mark.parametrize("kind", KINDS)
def test_other_integers_and_other_scales_are_other_models(kind):
    def mark(change=lambda layer: None):
        model = quantised(TINY["llama"]().float(), kind)
        change(model.model.layers[1].mlp.down_proj)
        return fingerprint(model)

    def integer(layer):
        stored = layer.qweight if kind == "Gptq" else layer.weight
        stored.view(torch.uint8).view(-1)[7] ^= 1

    def scale(layer):
        where = {
            "Int8": lambda: layer.scale,
            "Packed4": lambda: layer.weight.quant_state.absmax,
            "Gptq": lambda: layer.scales,
            "Float8": lambda: layer.weight_scale_inv.data,
        }
        where[kind]().mul_(2)

    with torch.no_grad():
        assert mark() == mark()
        assert len({mark(), mark(integer), mark(scale)}) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_directions_are_found_in_a_quantised_model(kind):
    lm = tiny(kind)
    P = prompts([6, 4])
    bank = fit(CausalMap(lm, P, 1, 3), Random(num_factors=1, scale=4.0), progress=False).features
    before = logits(lm)
    with steer(lm, bank[0]):
        assert not torch.allclose(logits(lm), before)


def test_weights_that_are_computed_are_not_edited():
    model = TINY["llama"]().float()
    torch.nn.utils.parametrizations.weight_norm(model.model.layers[2].mlp.down_proj)
    lm = LanguageModel(model, tiny_tokenizer())
    V = directions(1, lm.width).float()
    with pytest.raises(MelboError, match=r"layers\.2.*computed by"), ablate(lm, V):
        pass
