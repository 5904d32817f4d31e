import json
import sys

import peft
import pytest
import torch
import transformers
from cases import TINY, checkpoint

from melbo import MelboError, load


@pytest.fixture
def adapter(folder, tmp_path):
    """A LoRA of the model in ``folder``, and that model with it, as peft has it."""
    config = peft.LoraConfig(
        r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
    )
    model = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(folder), config)
    model.save_pretrained(tmp_path / "lora")
    return tmp_path / "lora", model


def test_the_folder_of_an_adapter_is_its_base_with_the_adapter(folder, adapter):
    path, model = adapter
    lm, ids = load(str(path)), torch.arange(6)[None]
    with torch.no_grad():
        torch.testing.assert_close(lm.model(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(lm.model(ids).logits, load(str(folder)).model(ids).logits)
    assert lm.name == str(path)
    assert lm.fingerprint != load(str(folder)).fingerprint


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda config: config.pop("base_model_name_or_path"), "names no base model"),
        (lambda config: config.update(base_model_name_or_path=None), "has the base model None"),
        (
            lambda config: config.update(base_model_name_or_path="/nowhere/at-all"),
            "no model .*nowhere/at-all",
        ),
        (lambda config: config.update(r=3), "cannot load the adapter in"),
    ],
)
def test_an_adapter_of_nothing_is_refused(adapter, spoil, says):
    path, _ = adapter
    config = json.loads((path / "adapter_config.json").read_text())
    spoil(config)
    (path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(MelboError, match=says):
        load(str(path))


def test_an_adapter_without_peft_says_the_pip_command(adapter, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MelboError, match=r"pip install 'melbo\[organisms\]'"):
        load(str(adapter[0]))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma", "qwen2"])
@pytest.mark.parametrize("where", ["embedding", "head", "both"])
def test_single_tokens_that_an_adapter_trained_are_in_the_merged_weights(name, where, tmp_path):
    """Tied embeddings too; a head that is trained apart from them cannot be merged."""
    base = checkpoint(TINY[name](), tmp_path / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    table = "wte" if name == "gpt2" else "embed_tokens"
    tokens = {"embedding": [50, 70], "head": {"lm_head": [50, 70]}}
    tokens["both"] = {table: [50], "lm_head": [70]}
    module = "c_attn" if name == "gpt2" else "q_proj"
    config = peft.LoraConfig(
        r=2,
        task_type="CAUSAL_LM",
        target_modules=[module],
        fan_in_fan_out=name == "gpt2",
        trainable_token_indices=tokens[where],
        init_lora_weights=False,
    )
    model = peft.get_peft_model(model, config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "trainable_tokens_delta" in key:
                p.add_(torch.randn_like(p))
    model.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[1, 50, 70, 20, 50, 30]])
    with torch.no_grad():
        want = model(input_ids=ids).logits
    if where != "embedding" and model.config.tie_word_embeddings:
        with pytest.raises(MelboError, match="does not compute with the adapter") as err:
            load(str(tmp_path / "adapter"))
        assert "\n" not in str(err.value)
        return
    lm = load(str(tmp_path / "adapter"))
    with torch.no_grad():
        torch.testing.assert_close(lm.model(input_ids=ids).logits, want, rtol=1e-4, atol=1e-5)
