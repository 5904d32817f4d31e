"""A run remembers its model, so that the next command works from any folder."""

import json
import shutil

import pytest
import torch
from command_line import PROMPT, SHORT, joined, one_line, put

from melbo.cli import options
from melbo.models.language_model import LanguageModel

RANDOM = ("--method", "random", "-m", 2, "--scale", 4)


def fitted(melbo, model, out, *more):
    ended = melbo("fit", model, "--prompt", PROMPT, *RANDOM, "--out", out, *more)
    assert ended.code == 0, ended.err
    return json.loads((out / "run.json").read_text())["map"]["model"]


@pytest.fixture
def loaded(monkeypatch):
    """Precisions and names of all models that are loaded."""
    seen = []
    load = options.load_from

    def note(name, **how):
        lm = load(name, **how)
        seen.append((name, lm.dtype))
        return lm

    monkeypatch.setattr(options, "load_from", note)
    return seen


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "auto"])
def test_the_next_command_works_from_another_folder_in_the_same_precision(
    melbo, home, tmp_path, monkeypatch, loaded, dtype
):
    run = tmp_path / "run"
    kept = fitted(melbo, "tiny", run, "--dtype", dtype)
    expected = torch.float32 if dtype == "auto" else getattr(torch, dtype)
    assert kept["name"] == "tiny"
    assert kept["path"] == str(home / "tiny")
    assert kept["dtype"] == str(expected).removeprefix("torch.")
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    for command in (
        ("rank", "../run", "--controls", 1, *SHORT),
        ("sample", "../run", "--prompt", "dog", *SHORT),
        ("ablate", "../run", "--prompt", "dog", *SHORT),
        ("chat", "../run", *SHORT),
    ):
        ended = melbo(*command)
        assert ended.code == 0, ended.err
    assert {dtype for _, dtype in loaded} == {expected}
    assert {name for name, _ in loaded[1:]} == {str(home / "tiny")}


def test_an_option_comes_before_what_the_run_remembers(melbo, tmp_path, loaded):
    fitted(melbo, "tiny", tmp_path / "run", "--dtype", "bfloat16")
    for asked in ("float32", "auto"):
        how = ("--prompt", "dog", "--dtype", asked, *SHORT)
        assert melbo("sample", tmp_path / "run", *how).code == 0
    assert [dtype for _, dtype in loaded] == [torch.bfloat16, torch.float32, torch.float32]


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "gemma2"])
def test_a_model_that_has_moved_is_asked_for_and_given(melbo, tmp_path, name):
    put(name, tmp_path / "old")
    fitted(melbo, tmp_path / "old", tmp_path / "run")
    shutil.move(tmp_path / "old", tmp_path / "new")
    sample = ("sample", tmp_path / "run", "--prompt", "dog", *SHORT)
    said = one_line(melbo(*sample))
    assert f"no longer at {tmp_path / 'old'}: say where it is by --model PATH" in said
    assert melbo(*sample, "--model", tmp_path / "new").code == 0


def test_another_model_at_the_same_place_is_refused(melbo, tmp_path):
    put("llama", tmp_path / "model")
    fitted(melbo, tmp_path / "model", tmp_path / "run")
    shutil.rmtree(tmp_path / "model")
    put("gpt2", tmp_path / "model")
    assert "fitted on" in one_line(melbo("sample", tmp_path / "run", "--prompt", "dog", *SHORT))


def test_a_folder_of_models_that_moves_with_its_runs_is_found_by_the_name_typed(
    melbo, tmp_path, monkeypatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    put("llama", "model")
    fitted(melbo, "model", tmp_path / "here" / "run")
    shutil.move(tmp_path / "here", tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    assert melbo("sample", "run", "--prompt", "dog", *SHORT).code == 0


def test_a_run_of_an_older_version_loads_by_its_name(melbo, home, run):
    kept = json.loads((run / "run.json").read_text())
    for key in ("path", "dtype", "blocks"):
        del kept["map"]["model"][key]
    (run / "run.json").write_text(json.dumps(kept))
    assert melbo("sample", run, "--prompt", "dog", *SHORT).code == 0


@pytest.mark.parametrize("key", ["path", "dtype", "blocks", "name"])
def test_a_description_of_another_type_is_refused(melbo, run, key):
    kept = json.loads((run / "run.json").read_text())
    kept["map"]["model"][key] = ["tiny"]
    (run / "run.json").write_text(json.dumps(kept))
    said = one_line(melbo("sample", run, "--prompt", "dog", *SHORT))
    assert "does not hold what `melbo fit` writes" in said


def test_blocks_that_were_given_are_remembered(melbo, tmp_path, monkeypatch):
    asked = []
    find = LanguageModel._find_blocks

    def note(self, path):
        asked.append(path)
        return find(self, path)

    monkeypatch.setattr(LanguageModel, "_find_blocks", note)
    kept = fitted(melbo, "tiny", tmp_path / "run", "--blocks", "model.layers")
    assert kept["blocks"] == "model.layers"
    assert melbo("sample", tmp_path / "run", "--prompt", "dog", *SHORT).code == 0
    assert asked == ["model.layers"] * 2


def test_contrast_remembers_too(melbo, tmp_path, monkeypatch, loaded):
    how = ("--method", "sara", "--plus", "yes", "--minus", "no", "--dtype", "bfloat16")
    assert melbo("contrast", "tiny", *how, "--out", tmp_path / "run").code == 0
    monkeypatch.chdir(tmp_path)
    assert melbo("sample", "run", "--prompt", "dog", *SHORT).code == 0
    assert [dtype for _, dtype in loaded] == [torch.bfloat16] * 2


def test_the_next_command_is_told_as_a_shell_takes_it(melbo, tmp_path):
    out = tmp_path / "a run; of mine"
    argv = ("fit", "tiny", "--prompt", PROMPT, *RANDOM, "--out", out)
    assert f"next: melbo rank '{out}'\n" in joined(melbo(*argv).out)
    said = joined(melbo(*argv, "--force", "--trust-remote-code").out)
    assert f"next: melbo rank '{out}' --trust-remote-code\n" in said
