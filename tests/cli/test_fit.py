"""Commands that find features: what goes in, and what comes out."""

import json
import re
import shutil

import pytest
import torch
from command_line import FIT, PROMPT, SHORT, joined, strict

from melbo import FeatureSet


def test_fit_prints_json_and_nothing_else(home):
    said = strict((home / "fit.json").read_text())
    run = json.loads((home / "run" / "run.json").read_text())
    assert said.keys() == {"run", "scale", "status", "stats", "history", "stability"}
    assert said["run"] == "run"
    assert said["scale"] == run["scale"] == run["calibration"]["scale"]
    assert said["history"] == run["fit"]["history"]
    assert len(FeatureSet.load(home / "run")) == 4


@pytest.mark.parametrize("method", ["linear", "projected", "quadratic", "exponential", "random"])
def test_every_method_fits_from_the_command_line(melbo, tmp_path, method):
    run = tmp_path / "run"
    told = ("-m", 3, "--method", method, "--scale", 1, "--seed", 3)
    ended = melbo(*FIT[:4], "--out", run, *told)
    assert ended.code == 0
    assert ended.out.startswith("3 features at R = 1 explain")
    assert joined(ended.out).endswith(f"\nnext: melbo rank {run}\n")
    features = FeatureSet.load(run)
    # 8/30 and 20/30 of four blocks
    assert (features.source, features.target) == (1, 3)
    assert (features.meta["seed"], features.scale) == (3, 1.0)


def test_the_size_of_a_batch_reaches_the_method(melbo, tmp_path):
    run = tmp_path / "run"
    told = ("-m", 3, "--method", "melbo", "--scale", 1, "--steps", 2, "--vectors-per-batch", 2)
    assert melbo(*FIT[:4], "--out", run, *told).code == 0
    method = FeatureSet.load(run).meta["method"]
    assert (method["steps"], method["batch_size"]) == (2, 2)


def test_options_of_the_map_reach_the_map(melbo, tmp_path):
    run = tmp_path / "run"
    layers = ("--source", -4, "--target", -1, "--target-tokens", 2)
    switches = ("--skip-first", "--normalise-target", "--concatenate", "--system", "Sure")
    prompts = ("--prompt", "dog", "--prompts", "good.txt")
    told = ("--out", run, "-m", 2, "--scale", 1)
    assert melbo("fit", "tiny", *prompts, *told, *layers, *switches).code == 0
    kept = json.loads((run / "run.json").read_text())["map"]
    assert kept["prompts"]["texts"] == ["dog", "he or she", "red or blue ?"]
    assert kept["prompts"]["system"] == "Sure"
    assert (kept["source"], kept["target"], kept["target_tokens"]) == (1, 4, 2)
    assert all(kept[name] is True for name in ("skip_first", "normalise_target", "concatenate"))


def test_a_quick_fit_draws_no_bar(melbo, tmp_path):
    ended = melbo(*FIT[:4], "--out", tmp_path / "run", "-m", 3, "--scale", 1)
    assert ended.code == 0
    assert ended.err == ""  # bars are for what takes longer than a second


def test_the_fast_mode_is_kept_with_the_run(melbo, home):
    assert melbo(*FIT, "--positions", "target", "--tokens-per-pass", 64).code == 0
    assert json.loads((home / "new" / "run.json").read_text())["map"]["positions"] == "target"
    assert melbo("sample", "new", "--prompt", PROMPT, *SHORT).code == 0
    shutil.rmtree(home / "new")


def test_force_replaces_a_run_and_what_was_made_of_it(melbo, run):
    ended = melbo(*FIT[:4], "--out", run, "-m", 2, "--scale", 1, "--force")
    assert ended.code == 0
    assert len(FeatureSet.load(run)) == 2
    names = sorted(p.name for p in run.iterdir())
    assert names == ["features.safetensors", "report.html", "run.json"]


def test_seeds_say_how_well_features_are_found_again(melbo, tmp_path):
    run = tmp_path / "run"
    told = ("-m", 2, "--scale", 3, "--max-steps", 2, "--seeds", 2)
    ended = melbo(*FIT[:4], "--out", run, *told)
    assert ended.code == 0
    assert "found again with 2 seeds" in ended.out
    assert FeatureSet.load(run).meta["stability"]["seeds"] == 2


def test_a_run_is_the_same_every_time(melbo, home, tmp_path):
    for name in ("one", "two"):
        assert melbo(*FIT[:4], "--out", tmp_path / name, "-m", 4).code == 0
    one, two, first = (
        FeatureSet.load(folder) for folder in (tmp_path / "one", tmp_path / "two", home / "run")
    )
    assert torch.equal(one.V, two.V)
    assert torch.equal(one.alpha, two.alpha)
    assert torch.allclose(one.V, first.V, atol=1e-4)  # another process, with what else it has set


def test_calibrate_gives_the_scale_that_fit_uses(melbo, home):
    ended = melbo("calibrate", "tiny", "--prompt", PROMPT, "--json")
    assert ended.code == 0
    found = strict(ended.out)
    kept = json.loads((home / "run" / "run.json").read_text())
    assert found["scale"] == pytest.approx(kept["scale"], rel=1e-6)
    assert found["nonlinearity"] == 0.5
    plain = melbo("calibrate", "tiny", "--prompt", PROMPT, "--nonlinearity", 0.3)
    assert plain.code == 0
    assert float(re.search(r"^R = ([\d.]+), ", plain.out, re.MULTILINE)[1]) < found["scale"]
