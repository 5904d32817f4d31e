"""Weights that accelerate keeps elsewhere are edited as those in memory are."""

import warnings

import pytest
import torch
from adapters import a_map, a_set
from cases import tiny_model
from offloaded import offloaded
from toys import directions
from transformers import AutoModelForCausalLM

from melbo import ablate, load
from melbo.features.adapters import AdapterSet

pytestmark = pytest.mark.slow

IDS = torch.tensor([[5, 9, 17, 23, 31, 40], [2, 11, 60, 4, 8, 77]])
CASES = [
    ("llama", "cpu", torch.float32),
    ("llama_tied", "cpu", torch.float32),
    ("llama_tied", "disk", torch.float32),
    ("gpt2", "disk", torch.float32),
    ("gemma3", "mixed", torch.bfloat16),
    ("mixtral", "disk", torch.float32),
    ("gpt_oss", "cpu", torch.bfloat16),
    ("bloom", "cpu", torch.float32),
]


@torch.no_grad()
def logits(lm):
    return lm.model(IDS).logits


@pytest.mark.parametrize(("name", "how", "dtype"), CASES)
def test_the_fingerprint_is_that_of_the_same_model_in_memory(name, how, dtype, tmp_path):
    expected = tiny_model(name, dtype).fingerprint
    lm = offloaded(name, how, dtype, tmp_path)
    logits(lm)
    assert lm.fingerprint == expected


def test_other_offloaded_weights_have_another_fingerprint(tmp_path):
    lm = offloaded("llama", "cpu", torch.float32)
    hook = lm.blocks[1].mlp.up_proj._hf_hook
    hook.weights_map["weight"][0, 0] += 1
    assert lm.fingerprint != tiny_model("llama", torch.float32).fingerprint


@pytest.mark.parametrize("embedding", [False, True])
@pytest.mark.parametrize(("name", "how", "dtype"), CASES)
def test_ablation_is_that_of_the_same_model_in_memory(name, how, dtype, embedding, tmp_path):
    whole, lm = tiny_model(name, dtype), offloaded(name, how, dtype, tmp_path)
    V, before = directions(2, lm.width), logits(lm)
    with ablate(whole, V, embedding), ablate(lm, V, embedding):
        assert torch.equal(logits(lm), logits(whole))
        assert not torch.allclose(logits(lm), before)
    assert torch.equal(logits(lm), before)
    assert torch.equal(logits(lm), logits(tiny_model(name, dtype)))


@pytest.mark.parametrize("how", ["cpu", "disk", "mixed"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_merging_is_that_of_the_same_model_in_memory(name, how, tmp_path):
    cmap = a_map(name, torch.float32)
    bank: AdapterSet = a_set(cmap, 1)
    lm = offloaded(name, how, torch.float32, tmp_path)
    before = logits(lm)
    with bank.merge(cmap.lm), bank.merge(lm):
        assert torch.equal(logits(lm), logits(cmap.lm))
        assert not torch.allclose(logits(lm), before)
    assert torch.equal(logits(lm), before)


def test_an_ablated_checkpoint_on_disk_is_saved_ablated(tmp_path):
    tiny_model("llama", torch.float32).model.save_pretrained(tmp_path / "whole")
    tiny_model("llama").tokenizer.save_pretrained(tmp_path / "whole")
    places = {f"model.layers.{i}": "disk" if i > 1 else "cpu" for i in range(4)}
    places |= dict.fromkeys(
        ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu"
    )
    lm = load(str(tmp_path / "whole"), device_map=places)
    whole = load(str(tmp_path / "whole"))
    assert lm.fingerprint == whole.fingerprint
    v = directions(1, lm.width)
    with ablate(lm, v), ablate(whole, v):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about memory
            lm.model.save_pretrained(tmp_path / "ablated")
        expected = logits(whole)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ablated")
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, expected)
