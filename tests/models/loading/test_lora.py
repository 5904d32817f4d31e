"""An adapter's own tokenizer, template and tokens, and adapters that do not fit."""

import json
import warnings

import peft
import pytest
import torch
import transformers
from cases import TINY, checkpoint, tiny_tokenizer
from offloaded import offloaded
from peft.tuners.lora.layer import ParamWrapper
from quantised import quantised
from safetensors.torch import load_file, save_file

from melbo import LanguageModel, MelboError, Prompts, load
from melbo.models.loading import lora
from melbo.models.loading.lora import with_adapter
from research.tiny.experts import EXPERTS

FILE = "adapter_model.safetensors"
OWN = "{% for m in messages %}red {{ m['content'] }} blue{% endfor %}"


def trained(folder, out, tokenizer=None, rows=None, **config):
    """An adapter with random weights, as a training script leaves it; returns the peft model."""
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    if rows is not None:
        base.resize_token_embeddings(rows)
    settings = {"r": 2, "target_modules": ["q_proj"], "init_lora_weights": False} | config
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what is saved
        model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
        model.save_pretrained(out)
    if tokenizer is not None:
        tokenizer.save_pretrained(out)
    return model.eval()


@torch.no_grad()
def assert_same(lm, model, ids):
    expected = model(ids).logits
    torch.testing.assert_close(lm.model(ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_the_tokenizer_and_template_of_the_folder_are_used(folder, tmp_path):
    own = tiny_tokenizer()
    own.chat_template = OWN
    model = trained(folder, tmp_path / "lora", own)
    lm = load(str(tmp_path / "lora"))
    tokens = Prompts.chat(lm, ["Tell me"]).tokens[0]
    assert lm.tokenizer.decode(tokens) == "red Tell me blue"
    assert_same(lm, model, torch.tensor([tokens]))


def test_a_template_alone_is_used_with_the_tokenizer_of_the_base(folder, tmp_path):
    trained(folder, tmp_path / "lora")
    (tmp_path / "lora" / "chat_template.jinja").write_text(OWN)
    lm = load(str(tmp_path / "lora"))
    assert lm.tokenizer.decode(Prompts.chat(lm, ["Tell me"]).tokens[0]) == "red Tell me blue"


def test_a_folder_without_a_tokenizer_has_that_of_its_base(folder, tmp_path):
    trained(folder, tmp_path / "lora")
    assert load(str(tmp_path / "lora")).tokenizer.chat_template == tiny_tokenizer().chat_template


@pytest.mark.parametrize("name", ["llama", "llama_tied", "gemma3"])
def test_added_tokens_come_with_their_rows(tmp_path, name):
    base = checkpoint(TINY[name](), tmp_path / "base")
    own = tiny_tokenizer()
    own.add_tokens(["<think>", "</think>"])
    both = ["embed_tokens", "lm_head"] if name == "llama" else ["embed_tokens"]
    more = {} if name == "llama" else {"ensure_weight_tying": True}
    model = trained(base, tmp_path / "lora", own, rows=98, modules_to_save=both, **more)
    lm = load(str(tmp_path / "lora"))
    assert lm.model.get_input_embeddings().weight.shape[0] == 98
    assert_same(lm, model, torch.tensor([lm.tokenizer("<think> yes </think>").input_ids]))


def test_rows_that_nobody_brings_are_refused(folder, tmp_path):
    trained(folder, tmp_path / "lora", rows=98, modules_to_save=["embed_tokens", "lm_head"])
    path = tmp_path / "lora" / FILE
    kept = {k: t for k, t in load_file(path).items() if "lm_head" not in k}
    save_file(kept, path, {"format": "pt"})
    with pytest.raises(MelboError, match="of an embedding of 98 rows.*modules_to_save"):
        load(str(tmp_path / "lora"))


def test_a_smaller_embedding_is_taken_as_it_is(folder, tmp_path):
    both = ["embed_tokens", "lm_head"]
    model = trained(folder, tmp_path / "lora", rows=90, modules_to_save=both)
    assert_same(load(str(tmp_path / "lora")), model, torch.tensor([[5, 80, 7]]))


FAULTS = {
    "missing": (lambda k, t: None if "layers.2." in k else (k, t), "it lacks .*layers.2"),
    "deeper": (lambda k, t: (k.replace("layers.3.", "layers.9."), t), "layers.9.* besides"),
    "other matrix": (lambda k, t: (k.replace("q_proj", "k_proj"), t), "lacks .*q_proj.*k_proj"),
    "no prefix": (lambda k, t: (k.replace("base_model.model.", ""), t), "does not fit|cannot load"),
}


@pytest.mark.parametrize(("change", "says"), FAULTS.values(), ids=FAULTS)
def test_an_adapter_that_does_not_fit_is_refused(folder, tmp_path, change, says):
    trained(folder, tmp_path / "lora")
    path = tmp_path / "lora" / FILE
    pairs = [change(k, t) for k, t in load_file(path).items()]
    save_file(dict(p for p in pairs if p is not None), path, {"format": "pt"})
    with pytest.raises(MelboError, match=says) as err:
        load(str(tmp_path / "lora"))
    assert "\n" not in str(err.value)


def test_an_adapter_is_not_merged_into_weights_that_are_elsewhere_or_packed(folder, tmp_path):
    trained(folder, tmp_path / "lora")
    for lm, says in (
        (offloaded("llama", "cpu", torch.float32), "offloaded"),
        (LanguageModel(quantised(TINY["llama"]().float(), "Int8"), tiny_tokenizer()), "quantised"),
    ):
        with pytest.raises(MelboError, match=f"cannot be merged .* whose weights are {says}"):
            with_adapter(lm, tmp_path / "lora")


@pytest.mark.parametrize("more", [{"use_dora": True}, {"use_rslora": True}, {"r": 4}])
@pytest.mark.parametrize("name", ["llama", "qwen2", "mixtral"])
def test_kinds_of_adapters_are_merged_as_peft_runs_them(tmp_path, name, more):
    base = checkpoint(TINY[name](), tmp_path / "base")
    model = trained(base, tmp_path / "lora", target_modules=["q_proj", "o_proj"], **more)
    assert_same(load(str(tmp_path / "lora")), model, torch.tensor([[5, 80, 7]]))
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss", "llama4_square"])
def test_every_expert_is_merged_with_its_adapter_or_the_adapter_is_refused(
    tmp_path, name, monkeypatch
):
    """Stacks of either storage; an expert that no token of a prompt reaches is compared too."""
    base = checkpoint({**TINY, **EXPERTS}[name](), tmp_path / "base")
    stack = "feed_forward" if name == "llama4_square" else "mlp"
    matrices = [f"{stack}.experts.gate_up_proj", f"{stack}.experts.down_proj"]
    model = trained(base, tmp_path / "lora", target_modules=[], target_parameters=matrices)
    lm = load(str(tmp_path / "lora"))
    assert_same(lm, model, torch.arange(7, 96).reshape(1, -1)[:, :60])
    real = ParamWrapper.merge

    def all_but_the_last_expert(self, *args, **more):
        kept = self.get_param()[-1].clone()
        real(self, *args, **more)
        self.get_param().data[-1] = kept

    with monkeypatch.context() as patch:
        patch.setattr(ParamWrapper, "merge", all_but_the_last_expert)
        # no token of the few goes there: logits do not tell
        send = routed_elsewhere(name)
        patch.setattr(lora, "_require_fit", lambda read, lm, folder: send(lm))
        with pytest.raises(MelboError, match="does not compute with the adapter .* merged"):
            load(str(tmp_path / "lora"))


def routed_elsewhere(name):
    """Make routers never choose the last expert."""

    def send(lm):
        for path, module in lm.model.named_modules():
            if path.endswith((".gate", ".router")):
                module.weight.data[-1] = 0
                module.register_forward_pre_hook(lambda m, args: (args[0].abs(), *args[1:]))
                module.weight.data[:-1] = module.weight.data[:-1].abs()

    return send
