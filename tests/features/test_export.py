"""LoRAs that are exported: peft loads them onto the base they name, and gets the steered logits."""

import json

import peft
import pytest
import torch
from adapters import a_map, a_set
from cases import TINY, tiny_tokenizer
from command_line import put
from recurrent import RECURRENT

import melbo
from melbo import AdapterMap, LanguageModel, MelboError, Prompts, steer
from melbo.features import adapters as exporting

IDS = torch.tensor([[5, 9, 11, 40]])
NAMES = ["llama", "gpt2", "qwen3", "gpt_neox"]


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def loaded(folder, name="llama"):
    """A tiny checkpoint in a folder, loaded; and three adapters of it."""
    put(name, folder)
    lm = melbo.load(str(folder), dtype="float32")
    return lm, adapters_of(lm)


def adapters_of(lm):
    prompts = Prompts.text(lm, ["one two", "red or blue ?"])
    return a_set(AdapterMap(lm, prompts, (0, 2), target=3), 3)


@pytest.mark.parametrize("matrix", ["attention", "mlp"])
@pytest.mark.parametrize("name", NAMES)
def test_several_adapters_are_one_lora_of_their_sum(name, matrix, tmp_path):
    cmap = a_map(name, torch.float32, matrix=matrix)
    lm, adapters = cmap.lm, a_set(cmap, 4)
    adapters[[3, 0, 2]].export_peft(lm, tmp_path / "lora", strength=-0.7)
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["r"] == 3
    plain = logits(lm.model)
    with steer(lm, adapters[0], adapters[2], adapters[3], strength=-0.7):
        together = logits(lm.model)
    assert (together - plain).norm() > 0.1
    model = peft.PeftModel.from_pretrained(lm.model, tmp_path / "lora")
    assert torch.allclose(logits(model), together, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_peft_finds_the_base_from_another_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lm, adapters = loaded("tiny", name)
    adapters[:2].export_peft(lm, "lora")
    with steer(lm, adapters[0], adapters[1]):
        together = logits(lm.model)
    (tmp_path / "away").mkdir()
    monkeypatch.chdir("away")
    model = peft.AutoPeftModelForCausalLM.from_pretrained("../lora")
    assert torch.allclose(logits(model), together, atol=1e-4)
    assert torch.allclose(logits(melbo.load("../lora", dtype="float32").model), together, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "path", "base"),
    [
        ("smollm2", None, "/cache/bundled"),
        ("smollm2", "/here/smollm2", "/cache/bundled"),
        ("org/model", None, "org/model"),
        ("a.gguf", "/here/a.gguf", "/cache/a.gguf"),
        ("A.GGUF", "/here/A.GGUF", "/cache/A.GGUF"),
        ("tiny", "/here/tiny", "/here/tiny"),
    ],
)
def test_the_base_is_a_folder_or_a_hub_id(name, path, base, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "bundled", lambda: "/cache/bundled")
    monkeypatch.setattr(exporting, "converted", lambda file: f"/cache/{file.name}")
    cmap = a_map("llama", torch.float32)
    cmap.lm.name, cmap.lm.path = name, path
    a_set(cmap, 1).export_peft(cmap.lm, tmp_path / "lora")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == base


def test_an_adapter_on_a_merged_adapter_is_refused_until_the_model_is_saved(tmp_path):
    lm, adapters = loaded(tmp_path / "tiny")
    adapters[0].export_peft(lm, tmp_path / "first")
    merged = melbo.load(str(tmp_path / "first"), dtype="float32")
    second = adapters_of(merged)
    with pytest.raises(MelboError, match=r"merged into its base.*export from there"):
        second[1].export_peft(merged, tmp_path / "second")
    assert not (tmp_path / "second").exists()
    merged.model.save_pretrained(tmp_path / "whole")
    merged.tokenizer.save_pretrained(tmp_path / "whole")
    whole = melbo.load(str(tmp_path / "whole"), dtype="float32")
    second[1].export_peft(whole, tmp_path / "second")
    with steer(merged, second[1]):
        steered = logits(merged.model)
    model = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "second")
    assert torch.allclose(logits(model), steered, atol=1e-4)


def test_no_adapters_and_folders_that_take_none_are_refused(tmp_path):
    cmap = a_map("llama", torch.float32)
    adapters = a_set(cmap, 2)
    with pytest.raises(MelboError, match="got no adapters"):
        adapters[[]].export_peft(cmap.lm, tmp_path / "none")
    (tmp_path / "lora" / "adapter_config.json").mkdir(parents=True)
    with pytest.raises(MelboError, match="cannot be written to"):
        adapters.export_peft(cmap.lm, tmp_path / "lora", force=True)
    with pytest.raises(MelboError, match="strength is nan"):
        adapters.export_peft(cmap.lm, tmp_path / "other", strength=float("nan"))
    assert not (tmp_path / "other").exists()


def test_matrices_and_models_that_peft_cannot_adapt_are_refused(tmp_path):
    lm = LanguageModel(RECURRENT["mamba"]().float(), tiny_tokenizer(), name="tiny")
    prompts = Prompts.text(lm, ["one two", "red or blue ?"])
    with pytest.raises(MelboError, match="peft puts no LoRA on out_proj of tiny"):
        a_set(AdapterMap(lm, prompts, (0, 2), target=3), 1).export_peft(lm, tmp_path / "lora")
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    lm = LanguageModel(peft.get_peft_model(TINY["llama"](), config), tiny_tokenizer(), name="tiny")
    with pytest.raises(MelboError, match=r"tiny is wrapped by peft.*merge_and_unload"):
        adapters_of(lm).export_peft(lm, tmp_path / "lora")
    assert not (tmp_path / "lora").exists()
