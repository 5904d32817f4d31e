"""Default layers of models with few blocks, and models that are written."""

import json
from types import SimpleNamespace

import peft
import pytest
import torch
import transformers
from cases import tiny_tokenizer
from command_line import PROMPT, SHORT, one_line

import melbo as library
from melbo.cli import options, write
from melbo.cli.options import default_layers
from melbo.evaluation.halving import plan, usual_budget

pytestmark = pytest.mark.slow

SHAPE = {"vocab_size": 96, "hidden_size": 32, "num_attention_heads": 4}
KINDS = {
    "llama": (transformers.LlamaConfig, {"intermediate_size": 48}),
    "gpt_neox": (transformers.GPTNeoXConfig, {"intermediate_size": 48}),
    "gpt2": (transformers.GPT2Config, {}),
}


@pytest.mark.parametrize("shares", [(8 / 30, 20 / 30), (0.5, 0.5), (0.9, 1.0), (0.0, 0.0)])
@pytest.mark.parametrize("depth", range(1, 61))
def test_default_layers_have_a_block_between_them(depth, shares):
    source, target = default_layers(SimpleNamespace(depth=depth), shares)
    assert 0 <= source < target <= depth
    plain = tuple(round(depth * share) for share in shares)
    assert (source, target) == plain or plain[0] == plain[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", [2, 3, 4])
def test_every_command_works_at_its_default_layers(melbo, tmp_path, kind, depth):
    config, more = KINDS[kind]
    made = config(**SHAPE, **more, num_hidden_layers=depth)
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(made).save_pretrained(tmp_path / "few")
    tiny_tokenizer().save_pretrained(tmp_path / "few")
    few, pairs = tmp_path / "few", tmp_path / "pairs.txt"
    pairs.write_text("yes\tno\n")
    how = ("--prompt", PROMPT)
    for number, command in enumerate(
        (
            ("fit", few, *how, "--method", "random", "-m", 2, "--scale", 4),
            ("fit", few, *how, "--method", "cpe", "-m", 2, "--scale", 4, "--max-steps", 3),
            ("contrast", few, "--method", "caa", "--pairs", pairs),
            ("contrast", few, "--method", "sara", "--plus", "yes", "--minus", "no"),
        )
    ):
        run = tmp_path / f"run{number}"
        ended = melbo(*command, "--out", run)
        assert ended.code == 0, (command, ended.err)
        assert melbo("sample", run, "--prompt", "dog", *SHORT).code == 0
        kept = json.loads((run / "run.json").read_text())
        if "source" in kept:
            assert kept["source"] < kept["target"]


def test_adapters_are_exported_together(melbo, tmp_path):
    run, out = tmp_path / "run", tmp_path / "lora"
    how = ("--method", "cpe", "-m", 4, "--scale", 3, "--max-steps", 3)
    assert melbo("fit", "tiny", "--prompt", PROMPT, *how, "--out", run).code == 0
    chosen = ("--feature", 3, "--feature", 1, "--feature", 3)
    ended = melbo("export", run, *chosen, "--together", "--strength", -2, "--out", out)
    assert (ended.code, ended.out) == (0, f"{out}\n")
    lm = library.load("tiny")
    adapters, ids = library.AdapterSet.load(run, lm), torch.tensor([[5, 9, 11, 40]])
    with torch.no_grad(), library.steer(lm, adapters[1], adapters[3], strength=-2):
        steered = lm.model(ids).logits
    with torch.no_grad():
        found = peft.AutoPeftModelForCausalLM.from_pretrained(out)(ids).logits
        assert (lm.model(ids).logits - steered).norm() > 0.1
    assert torch.allclose(found, steered, atol=1e-4)
    assert "already holds an adapter" in one_line(
        melbo("export", run, *chosen, "--together", "--out", out)
    )
    assert melbo("export", run, "--together", "--out", out, "--force").code == 0
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 4


def test_nothing_is_exported_where_one_of_the_folders_is_taken(melbo, tmp_path):
    run, out = tmp_path / "run", tmp_path / "loras"
    how = ("--method", "cpe", "-m", 3, "--scale", 3, "--max-steps", 3)
    assert melbo("fit", "tiny", "--prompt", PROMPT, *how, "--out", run).code == 0
    assert melbo("export", run, "--feature", 2, "--out", out).code == 0
    assert "feature-2 already holds an adapter" in one_line(melbo("export", run, "--out", out))
    assert [path.name for path in out.iterdir()] == ["feature-2"]


def test_an_ablated_model_is_saved_with_its_processor(melbo, tmp_path, monkeypatch):
    class Processor:
        def save_pretrained(self, folder):
            (folder / "preprocessor_config.json").write_text("{}")

    load = options.load_from

    def with_processor(*args, **more):
        lm = load(*args, **more)
        lm.processor = Processor()
        return lm

    monkeypatch.setattr(options, "load_from", with_processor)
    out = tmp_path / "out"
    assert melbo("ablate", "run", "--feature", 0, "--out", out).code == 0
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= {
        path.name for path in out.iterdir()
    }


def test_a_model_that_cannot_be_saved_is_one_line(melbo, tmp_path, monkeypatch):
    def full(self, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transformers.LlamaForCausalLM, "save_pretrained", full)
    said = one_line(melbo("ablate", "run", "--feature", 0, "--out", tmp_path / "out"))
    assert "No space left on device" in said
    assert write.__doc__.startswith("Commands that write models")


@pytest.mark.parametrize(("num", "validation", "test"), [(64, 40, 30), (3, 1, 2), (1, 3, 5)])
def test_the_usual_budget_asks_all_candidates_a_quarter_of_the_prompts(num, validation, test):
    budget = usual_budget(num, validation, test)
    assert budget == num * max(1, validation // 4) + 2 * test
    assert plan(num, validation, test, budget).completions <= budget
    with pytest.raises(library.MelboError, match="too small"):
        plan(num, validation, test, num + 2 * test - 1)
