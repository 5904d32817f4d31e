"""Derivatives through packed weights: right, or refused."""

import pytest
from cases import TINY, prompts, tiny_tokenizer
from quantised import KINDS, quantised
from toys import directions

from melbo import CausalMap, LanguageModel, MelboError
from melbo.models.weights.packed import has_packed, keep_as_loaded


def made(kind, name="llama"):
    return LanguageModel(quantised(TINY[name]().float(), kind), tiny_tokenizer(), name=name)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"Float8"}))
@pytest.mark.parametrize("part", ["self_attn", "mlp"])
def test_a_kernel_without_a_backward_pass_is_refused(kind, part):
    lm = made(kind)
    assert has_packed(lm.model)
    assert not lm.exact
    v = directions(1, lm.width).float()
    CausalMap(lm, prompts((5, 6)), 1, lm.depth, target_tokens=2).value_and_vjp(v, v)
    for module in getattr(lm.blocks[2], part).modules():
        if isinstance(module, KINDS[kind]):
            own = module.forward
            module.forward = lambda x, own=own: own(x.detach())
    with pytest.raises(MelboError, match=r"block 2 have no \(right\) derivative on this device"):
        CausalMap(lm, prompts((5, 6)), 1, lm.depth, target_tokens=2)
    CausalMap(lm, prompts((5, 6)), 0, 2, target_tokens=2)  # does not run through it


def test_weights_that_are_packed_anew_are_turned_back():
    """Bitsandbytes does so when a layer's state is read, and then as long as it is told to."""
    model = TINY["llama"]().float()
    layer, seen = model.model.layers[0].mlp.up_proj, []
    layer.support_avx512bf16_for_cpu = True
    layer.register_state_dict_pre_hook(lambda *args: seen.append(1))
    keep_as_loaded(model)
    assert seen
    assert layer.support_avx512bf16_for_cpu is False
    seen.clear()
    layer.support_avx512bf16_for_cpu = True
    LanguageModel(model, tiny_tokenizer())
    assert seen
