"""Checkpoints that do not fill the model are refused; what is harmless is not."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from cases import TINY, checkpoint, tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification

from melbo import MelboError, load

FILE = "model.safetensors"


def changed(folder, tmp_path, change):
    """A copy of a checkpoint with other tensors in its file."""
    copy = Path(shutil.copytree(folder, tmp_path / "changed"))
    tensors = change(load_file(copy / FILE))
    save_file({k: t.contiguous() for k, t in tensors.items()}, copy / FILE, {"format": "pt"})
    return str(copy)


def without(end):
    return lambda tensors: {k: t for k, t in tensors.items() if not k.endswith(end)}


def prefixed(prefix):
    return lambda tensors: {prefix + k: t for k, t in tensors.items()}


def renamed(old, new):
    return lambda tensors: {k.replace(old, new): t for k, t in tensors.items()}


def more(**extra):
    return lambda tensors: {
        **tensors,
        **{k.replace("__", "."): torch.ones(*s) for k, s in extra.items()},
    }


FAULTS = {
    "peft": (prefixed("base_model.model."), "'base_model.model.'.*peft wrapper"),
    "data parallel": (prefixed("module."), "'module.'.*DataParallel"),
    "compiled": (prefixed("_orig_mod."), "'_orig_mod.'.*compiled"),
    "student": (prefixed("student.net."), "begin with 'student.net.': save them without it"),
    "head": (without("lm_head.weight"), "it lacks lm_head.weight"),
    "a block": (without("layers.2.mlp.up_proj.weight"), "it lacks model.layers.2.mlp.up_proj"),
    "others": (renamed("self_attn.q_proj", "attention.wq"), r"it lacks .*q_proj.* and 1 more"),
    "deeper": (more(model__layers__7__mlp__up_proj__weight=(48, 32)), "layers.7.*besides"),
    "bias": (more(model__layers__1__self_attn__q_proj__bias=(32,)), "q_proj.bias besides"),
    "head bias": (more(lm_head__bias=(96,)), "lm_head.bias besides"),
    "lora": (
        lambda t: {
            **renamed("q_proj.weight", "q_proj.base_layer.weight")(t),
            **more(model__layers__1__self_attn__q_proj__lora_A__weight=(2, 32))({}),
        },
        "an adapter that is not merged",
    ),
    "scales": (more(model__layers__1__mlp__up_proj__SCB=(48,)), "quantization_config is lost"),
}


@pytest.mark.parametrize(("change", "says"), FAULTS.values(), ids=FAULTS)
def test_weights_that_do_not_fill_the_model_are_refused(folder, tmp_path, change, says):
    with pytest.raises(MelboError, match=f"do not fill LlamaForCausalLM: .*{says}") as err:
        load(changed(folder, tmp_path, change))
    assert "\n" not in str(err.value)


@pytest.mark.parametrize(
    ("name", "key", "shapes"),
    [
        ("llama", "model.layers.1.mlp.up_proj.weight", r"\(49, 33\), expected \(48, 32\)"),
        ("gpt2", "transformer.wte.weight", r"\(97, 33\), expected \(96, 32\)"),
        ("bloom", "transformer.h.2.mlp.dense_4h_to_h.bias", r"\(33,\), expected \(32,\)"),
        ("gpt_oss", "model.layers.0.mlp.experts.down_proj", r"\(5, 49, 33\), expected \(4, 48, 32"),
    ],
)
def test_a_tensor_of_another_shape_is_named_with_both(tmp_path, name, key, shapes):
    def larger(tensors):
        return {**tensors, key: torch.ones(*(n + 1 for n in tensors[key].shape))}

    folder = checkpoint(TINY[name](), tmp_path / "good")
    with pytest.raises(MelboError, match=f"do not fill .*: {key} has shape {shapes}") as err:
        load(changed(folder, tmp_path, larger))
    assert "\n" not in str(err.value)
    assert "config.json is of another model" in str(err.value)


def test_the_first_of_many_tensors_of_another_shape_is_named(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "larger"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    says = (
        r"layers.0.mlp.down_proj.weight has shape \(32, 48\), expected \(32, 64\) \(and 11 more\)"
    )
    with pytest.raises(MelboError, match=says):
        load(str(copy))


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_experts_of_unequal_shapes_are_named(tmp_path, name):
    def larger(tensors):
        key = next(k for k in tensors if "experts.1." in k)
        return {**tensors, key: torch.ones(*(n + 1 for n in tensors[key].shape))}

    folder = checkpoint(TINY[name](), tmp_path / "good")
    says = r"layers.0.mlp.experts.\w+ cannot be made of the tensors in the file \(.*equal size"
    with pytest.raises(MelboError, match=says) as err:
        load(changed(folder, tmp_path, larger))
    assert "\n" not in str(err.value)


HARMLESS = {
    "rotary": more(model__layers__1__self_attn__rotary_emb__inv_freq=(4,)),
    "value head": more(v_head__summary__weight=(1, 32)),
    "vision": more(vision_tower__encoder__layers__0__weight=(8, 8)),
    "more tokens ahead": more(mtp__layers__0__weight=(8, 8)),
}


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_what_has_no_place_in_the_model_is_left_out(folder, tmp_path, change):
    assert load(changed(folder, tmp_path, change)).fingerprint == load(folder).fingerprint


@pytest.mark.parametrize("name", ["llama_tied", "gpt2", "gemma3", "opt", "bloom", "mixtral"])
def test_tied_and_converted_weights_are_no_fault(tmp_path, name):
    expected = tiny_model(name, torch.float32).fingerprint
    assert load(checkpoint(TINY[name](), tmp_path)).fingerprint == expected


@pytest.mark.parametrize("name", ["llama_tied", "gpt2"])
def test_a_tied_model_that_was_saved_without_its_head_is_whole(tmp_path, name):
    folder = checkpoint(TINY[name](), tmp_path)
    AutoModel.from_pretrained(folder).save_pretrained(folder)
    assert load(folder).fingerprint == tiny_model(name, torch.float32).fingerprint


def test_a_reward_model_is_no_language_model(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "reward")
    AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(copy)
    with pytest.raises(MelboError, match=r"it lacks lm_head.weight.*classifier or reward model"):
        load(str(copy))


def test_a_shard_that_an_index_leaves_out_is_missed(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "shards"))
    TINY["llama"]().save_pretrained(copy, max_shard_size="20KB")
    (copy / FILE).unlink()
    index = json.loads((copy / f"{FILE}.index.json").read_text())
    gone = index["weight_map"]["model.layers.3.mlp.up_proj.weight"]
    index["weight_map"] = {k: f for k, f in index["weight_map"].items() if f != gone}
    (copy / f"{FILE}.index.json").write_text(json.dumps(index))
    with pytest.raises(MelboError, match="it lacks .*model.layers.3"):
        load(str(copy))
