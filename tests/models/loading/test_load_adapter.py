import json
import sys

import peft
import pytest
import torch
import transformers

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
