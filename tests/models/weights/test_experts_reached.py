"""Experts that few tokens choose are verified as the others are; pictures go past embeddings."""

import pytest
import torch
from cases import FLOAT32_INSIDE, TINY, tiny_tokenizer
from toys import directions

from melbo import LanguageModel, MelboError, ablate
from melbo.features import ablate as module
from melbo.models.weights.output_matrices import output_matrices
from research.tiny.experts import EXPERTS
from research.tiny.vision import VISION

NAMES = ["mixtral", "qwen3_moe", "olmoe", "gpt_oss", "granitemoe", "deepseek_v3", *EXPERTS]


def made(name):
    builder = {**TINY, **EXPERTS, **VISION}[name]
    dtype = torch.float32 if name in FLOAT32_INSIDE else torch.float64
    return LanguageModel(builder().to(dtype), tiny_tokenizer(), name=name)


@pytest.mark.parametrize("name", NAMES)
def test_a_single_expert_that_is_left_out_is_noticed(name, monkeypatch):
    lm = made(name)
    stacks = [w for w in output_matrices(lm) if w.expert and w.weight.ndim > 2]
    assert stacks
    v, without = directions(1, lm.width), module._without
    with ablate(lm, v):
        pass
    for chosen in range(stacks[0].weight.shape[0]):

        def all_but_one(basis, axis, tensor, chosen=chosen):
            found = without(basis, axis, tensor)
            if tensor.ndim > 2:
                found = found.clone()
                found[chosen] = tensor[chosen].to(found)
            return found

        monkeypatch.setattr(module, "_without", all_but_one)
        with pytest.raises(MelboError, match="still writes along the directions"), ablate(lm, v):
            pass
        monkeypatch.undo()


@pytest.mark.parametrize("name", sorted(set(VISION) - {"paligemma"}))
def test_the_embeddings_of_a_model_that_sees_are_left_alone(name):
    lm = made(name)
    before = [p.clone() for p in lm.model.parameters()]
    says = "reads more than tokens .*vision_config.*embedding=False"
    v = directions(1, lm.width)
    with pytest.raises(MelboError, match=says), ablate(lm, v, embedding=True):
        pass
    with ablate(lm, v):
        assert not all(map(torch.equal, before, lm.model.parameters()))
    assert all(map(torch.equal, before, lm.model.parameters()))
