"""Experts that few tokens choose are verified as the others are; pictures go past embeddings."""

import copy

import pytest
import torch
from cases import FLOAT32_INSIDE, TINY, prompts, tiny_tokenizer
from torch import nn
from toys import directions

from melbo import AdapterMap, LanguageModel, MelboError, ablate
from melbo.features import ablate as module
from melbo.models.weights.low_rank import find_sites
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


@pytest.mark.parametrize("name", NAMES)
def test_matrices_of_experts_take_no_merged_edit_and_the_output_of_attention_does(name):
    lm = made(name)
    [block, *_] = [w.block for w in output_matrices(lm) if w.expert]
    with pytest.raises(MelboError, match="experts.* adapters need one|no single MLP") as err:
        find_sites(lm, (block, block + 1), "mlp")
    assert "\n" not in str(err.value)
    with pytest.raises(MelboError, match="experts"):
        AdapterMap(lm, prompts([6, 4]), (block, block + 1), lm.depth, matrix="mlp")
    assert "o_proj" in find_sites(lm, (block, block + 1), "attention")[0].name


class Routed(nn.Module):
    """Experts in a list, as checkpoints with code of their own keep them; each token takes one."""

    def __init__(self, mlp, scale, bias):
        super().__init__()
        self.experts = nn.ModuleList(copy.deepcopy(mlp) for _ in range(3))
        with torch.no_grad():
            for i, expert in enumerate(self.experts):
                for p in expert.parameters():
                    p.mul_(1 + i)
        self.gate = nn.Linear(32, 3, dtype=torch.float64)
        self.gate.bias.data = torch.tensor([bias, 0.0, 0.0], dtype=torch.float64)
        self.scale = scale

    def forward(self, x):
        rows = x.reshape(-1, x.shape[-1])
        chosen, out = self.gate(rows).argmax(-1), torch.zeros_like(rows)
        for i, expert in enumerate(self.experts):
            if (chosen == i).any():
                out[chosen == i] = self.scale * expert(rows[chosen == i])
        return out.reshape(x.shape)


def routed(scale, bias):
    model = TINY["llama"]().double()
    for block in model.model.layers:
        block.mlp = Routed(block.mlp, scale, bias)
    return LanguageModel(model, tiny_tokenizer(), name="lists")


@pytest.mark.parametrize(("scale", "bias"), [(1.0, 100.0), (2.5, 100.0), (1.0, 0.0)])
def test_an_expert_that_every_token_chose_is_not_taken_for_all_of_them(scale, bias):
    lm = routed(scale, bias)
    found = {w.name for w in output_matrices(lm, 1) if w.expert}
    assert found == {f"model.layers.1.mlp.experts.{i}.down_proj.weight" for i in range(3)}
    with pytest.raises(MelboError, match=r"no single MLP output matrix: .*experts\.2\.down_proj"):
        find_sites(lm, (0, 2), "mlp")
    v = directions(1, lm.width).double()
    with ablate(lm, v):
        for expert in lm.blocks[1].mlp.experts:
            assert (v @ expert.down_proj.weight).norm() < 1e-9 * expert.down_proj.weight.norm()


def test_experts_that_the_block_itself_calls_are_refused_where_tokens_reach_one_alone():
    lm = routed(1.0, 100.0)
    block = lm.blocks[1]
    block.experts = block.mlp.experts
    block.mlp = None
    norm, attention = block.post_attention_layernorm, block.self_attn

    def forward(hidden_states, **kwargs):
        kwargs.pop("use_cache", None)
        h = hidden_states + attention(block.input_layernorm(hidden_states), **kwargs)[0]
        return h + block.experts[0](norm(h))

    block.forward = forward
    for call in (lambda: find_sites(lm, (1, 2), "mlp"), lambda: output_matrices(lm, 1)):
        with pytest.raises(MelboError, match=r"experts\.0.* reached this alone") as err:
            call()
        assert "\n" not in str(err.value)


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
