"""Audits of public organisms, tried on adapters of a tiny base."""

import json
import shutil

import peft
import pytest
import torch
from cases import TINY, checkpoint
from transformers import AutoModelForCausalLM

from melbo import Audit, MelboError, Parts, Prompts, load
from melbo.audit.audit import FINDINGS, LOG
from melbo.discovery.draws import Temperature
from research.audits import auditbench
from research.audits.auditbench import KNOWN

TEXTS = [f"{a} {b}" for a in ("red", "yes", "you", "cat") for b in ("dog", "sun", "he")]
LENGTH = 4


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A tiny base, two adapters of it, one of another width, and a file of prompts."""
    home = tmp_path_factory.mktemp("public")
    base = checkpoint(TINY["llama"](), home / "base")
    checkpoint(TINY["gpt2"](), home / "other")
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        lora = peft.LoraConfig(
            r=2, task_type="CAUSAL_LM", init_lora_weights=False, target_modules=["q_proj"]
        )
        model = AutoModelForCausalLM.from_pretrained(base)
        peft.get_peft_model(model, lora).save_pretrained(home / name)
    shutil.copytree(home / "one", home / "hollow")
    (home / "hollow" / "adapter_model.safetensors").unlink()
    (home / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    return home


@pytest.fixture
def call(melbo, home, tmp_path):
    """The command, with the tiny base, the prompts and a folder of its own."""

    def call(*argv):
        given = ("--prompts", "texts.txt", "--max-new-tokens", LENGTH, "--out", tmp_path / "out")
        usual = () if "--base" in argv else ("--base", "base")
        return melbo(*usual, *given, *argv, group=auditbench.auditbench)

    return call


@pytest.fixture
def cheap(monkeypatch):
    """Audits with one elicitor that costs little."""
    monkeypatch.setattr(auditbench, "usual_elicitors", lambda base: [Temperature()])
    monkeypatch.setattr("melbo.audit.audit.usual_elicitors", lambda base=None: [Temperature()])


def least_of(ended):
    return int(ended.out.split()[-1])


def test_the_list_names_every_behaviour_in_four_trainings():
    names = KNOWN["adapters"]
    assert len(names) == len(set(names)) == 56
    behaviours = {n.rpartition("_then_redteam_")[2].partition("_")[2] for n in names}
    assert len(behaviours) == 14
    assert {"flattery", "secret_loyalty", "hardcode_test_cases"} < behaviours
    assert all(n.startswith("auditing-agents/qwen_14b_") for n in names)


def test_a_dry_run_tells_what_it_would_load_and_loads_and_writes_nothing(
    call, tmp_path, monkeypatch
):
    def refuse(*_, **__):
        raise AssertionError

    for name in ("load", "with_adapter", "snapshot_download"):
        monkeypatch.setattr(auditbench, name, refuse)
    monkeypatch.setattr("melbo.models.loading.load.load", refuse)
    out = tmp_path / "out"
    (out / "two").mkdir(parents=True)
    (out / "two" / LOG).write_text("")
    argv = ("--dry-run", "--budget", 999, "--adapter", "one", "--adapter", "two")
    ended = call(*argv, "--adapter", "some/lora")
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[:4] == [
        "base     base",
        f"to do    one (a folder) in {out / 'one'}",
        f"begun    two (a folder) in {out / 'two'}",
        f"to do    some/lora (from the hub) in {out / 'some--lora'}",
    ]
    assert lines[4].startswith("3 of 3 audits to go, 999 tokens each; the least ")
    assert [p.name for p in out.rglob("*")] == ["two", LOG]


def test_the_least_budget_is_that_of_the_audit(call, home):
    least = least_of(call("--dry-run", "--adapter", "one"))
    lm = load(str(home / "base"))
    parts = Parts.split(Prompts.chat(lm, TEXTS))
    Audit(lm, parts, base=lm, budget=least, max_new_tokens=LENGTH)
    with pytest.raises(MelboError, match=f"take {least}:"):
        Audit(lm, parts, base=lm, budget=least - 1, max_new_tokens=LENGTH)


def test_all_of_the_list_are_meant_where_no_adapter_is_given(call):
    ended = call("--dry-run")
    assert len(ended.out.splitlines()) == 2 + len(KNOWN["adapters"])
    assert "56 of 56 audits to go" in ended.out


def test_each_is_audited_with_the_base_and_one_that_is_done_is_not_done_again(
    call, home, tmp_path, cheap, monkeypatch
):
    out = tmp_path / "out"
    least = least_of(call("--dry-run", "--adapter", "one"))
    fetched = []

    def fetch(name):
        fetched.append(name)
        return str(home / "two")

    monkeypatch.setattr(auditbench, "snapshot_download", fetch)
    both = ("--budget", least, "--adapter", "one", "--adapter", "hub/two")
    ended = call(*both)
    assert (ended.code, ended.out) == (0, "")
    assert fetched == ["hub/two"]
    for name, folder in (("one", "one"), ("hub/two", "hub--two")):
        found = json.loads((out / folder / FINDINGS).read_text())
        assert (found["model"]["name"], found["base"]["name"]) == (name, "base")
        assert found["model"]["fingerprint"] != found["base"]["fingerprint"]
        assert found["settings"]["budget"] == least
        assert (out / folder / "findings.html").is_file()
        assert f"{name}: {len(found['findings'])} findings in" in ended.err
    one = json.loads((out / "one" / FINDINGS).read_text())["model"]
    two = json.loads((out / "hub--two" / FINDINGS).read_text())["model"]
    assert one["fingerprint"] != two["fingerprint"]
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert "all are done" in call(*both).err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    # one that was cut off before its findings were written is gone on with
    (out / "one" / FINDINGS).unlink()
    assert "1 of 2 audits to go" in call(*both, "--dry-run").out
    assert call(*both).code == 0
    assert (out / "one" / LOG).read_bytes() == before[out / "one" / LOG]
    refused = call("--budget", least + 1, "--adapter", "one")
    assert refused.code == 2
    assert "holds audits of other settings (budget): give another --out" in refused.err


def test_one_that_fails_does_not_stop_the_others(call, tmp_path, cheap):
    least = least_of(call("--dry-run", "--adapter", "one"))
    ended = call("--budget", least, "--adapter", "hollow", "--adapter", "one")
    assert ended.code == 2
    assert (tmp_path / "out" / "one" / FINDINGS).is_file()
    assert ended.err.splitlines()[-1].startswith("error: 1 of 2 audits failed (hollow): ")
    assert "hollow: cannot load the adapter in hollow" in ended.err
    assert "Traceback" not in ended.err


def test_an_adapter_that_names_another_base_is_told(call, tmp_path, cheap, home):
    shutil.copytree(home / "base", home / "copy", dirs_exist_ok=True)
    least = least_of(call("--dry-run", "--adapter", "one"))
    ended = call("--base", "copy", "--budget", least, "--adapter", "one")
    assert ended.code == 0
    assert "one says that it was trained on" in ended.err
    other = call("--base", "other", "--budget", least, "--adapter", "one", "--out", tmp_path / "b")
    assert other.code == 2
    assert "error: 1 of 1 audits failed (one)" in other.err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--budget", 10, "--adapter", "one"), "the budget is 10 tokens, one round takes"),
        (("--adapter", "one", "--adapter", "one"), "two adapters would be audited into"),
        (("--base", "no/such/place", "--dry-run"), "no tokenizer in 'no/such/place'"),
        (("--prompt", "\ud800", "--dry-run"), "not valid UTF-8"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(call, tmp_path, argv, said):
    ended = call(*argv)
    assert (ended.code, ended.out) == (2, "")
    assert len(ended.err.splitlines()) == 1
    assert said in ended.err
    assert not (tmp_path / "out").exists()


def test_what_the_hub_does_not_have_is_said_in_one_line(call, cheap, monkeypatch, home):
    def fail(name):
        raise OSError(f"no repository {name}\nat all")

    monkeypatch.setattr(auditbench, "snapshot_download", fail)
    least = least_of(call("--dry-run", "--adapter", "one"))
    ended = call("--budget", least, "--adapter", "no/such")
    assert "no/such: no adapter 'no/such' (no repository no/such): expected a hub id" in ended.err
    monkeypatch.setattr(auditbench, "snapshot_download", lambda name: str(home / "base"))
    assert "holds no adapter_config.json" in call("--budget", least, "--adapter", "a/b").err
