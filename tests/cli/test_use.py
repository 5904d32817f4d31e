"""Commands that use a run: rank, sample, report, ablate, watch and export."""

import json
import re
import shutil

import pytest
import torch
from command_line import PROMPT, SHORT, WHOLE, joined, one_line, strict
from safetensors.torch import load_file

from melbo import FeatureSet


def test_rank_prints_json_and_nothing_else(home):
    said = strict((home / "rank.json").read_text())
    assert said == json.loads((home / "run" / "ranking.json").read_text())
    assert sorted(r["index"] for r in said["features"]) == [0, 1, 2, 3]
    assert len(said["controls"]) == 2
    assert sorted(p.name for p in (home / "run").iterdir()) == WHOLE


def test_rank_prints_a_table_with_unsteered_features_and_controls(melbo, run):
    how = ("--by", "contrast", "--contrast", "yes", "no")
    ended = melbo("rank", run, *SHORT, "--controls", 2, "--top", 3, *how)
    assert ended.code == 0
    assert len(re.findall(r"feature \d", ended.out)) == 3
    assert len(re.findall(r"random \d", ended.out)) == 2
    assert "unsteered" in ended.out
    assert "4 features: " in ended.out
    assert "2 controls: " in ended.out
    assert str(run / "report.html") in "".join(ended.out.split("\n"))
    kept = json.loads((run / "ranking.json").read_text())
    assert (kept["by"], kept["settings"]["contrast"]) == ("contrast", ["yes", "no"])


def test_rank_takes_prompts_from_files_and_a_model_that_has_moved(melbo, home, run, tmp_path):
    moved = shutil.copytree(home / "tiny", tmp_path / "moved")
    (tmp_path / "held.txt").write_text("dog and sun\n")
    told = ("--validation", "good.txt", "--held-out", tmp_path / "held.txt", "--model", moved)
    assert melbo("rank", run, *SHORT, "--controls", 1, *told).code == 0
    settings = json.loads((run / "ranking.json").read_text())["settings"]
    assert settings["validation"]["texts"] == ["he or she", "red or blue ?"]
    assert settings["held_out"]["texts"] == ["dog and sun"]


def test_sample_prints_the_unsteered_reply_first(melbo):
    chosen = ("--feature", 2, "--feature", 0)
    prompts = ("--prompt", "dog", "--prompts", "good.txt")
    ended = melbo("sample", "run", *prompts, *chosen, *SHORT, "--json")
    assert (ended.code, ended.err) == (0, "")
    rows = ended.rows
    assert [(r["prompt"], r["feature"], r["strength"]) for r in rows] == [
        (p, f, s)
        for p in ("dog", "he or she", "red or blue ?")
        for f, s in ((None, 0.0), (2, 1.0), (0, 1.0))
    ]
    plain = melbo("sample", "run", "--prompt", "dog", *chosen, *SHORT)
    assert (plain.code, plain.err) == (0, "")
    for row, label in zip(rows[:3], ("unsteered", "feature 2", "feature 0"), strict=True):
        assert f"{label}: {row['text'].strip() or '(empty reply)'}\n" in plain.out
    assert plain.out.endswith("\nnext: melbo chat run --feature 2\n")


def test_sample_says_what_rank_said(melbo, home):
    lines = (home / "run" / "completions.jsonl").read_text().split("\n")
    kept = [json.loads(line) for line in lines if line]
    expected = [c["text"] for c in kept if c["prompt"] == 0 and c["kind"] != "control"]
    prompt = kept[0]["prompt_text"]
    ended = melbo("sample", "run", "--prompt", prompt, "--max-new-tokens", 4, "--json")
    assert [row["text"] for row in ended.rows] == expected


def test_strength_zero_is_the_unsteered_reply(melbo):
    ended = melbo("sample", "run", "--prompt", "dog", "--strength", 0, *SHORT, "--json")
    assert len({row["text"] for row in ended.rows}) == 1


def test_features_are_averaged_into_one(melbo, home):
    chosen = ("--feature", 0, "--feature", 1, "--average", "mean")
    both = melbo("sample", "run", "--prompt", "dog", *chosen, *SHORT, "--json")
    assert [row["feature"] for row in both.rows] == [None, "mean of 0, 1"]
    every = melbo("sample", "run", "--prompt", "dog", "--average", "mean", *SHORT, "--json")
    assert [row["feature"] for row in every.rows] == [None, "mean of all"]
    features = FeatureSet.load(home / "run")
    mean = torch.nn.functional.normalize(features.V[0] + features.V[1], dim=0)
    assert torch.allclose(features[[0, 1]].averaged("mean").V[0], mean, atol=1e-6)
    main = torch.linalg.svd(features.V)[2][0]
    assert abs(features.averaged("svd").V[0] @ main) == pytest.approx(1, abs=1e-5)
    assert melbo("chat", "run", "--average", "svd", *SHORT, stdin="dog\n").code == 0


def test_report_prints_where_it_is(melbo, run):
    (run / "report.html").unlink()
    ended = melbo("report", run)
    assert (ended.code, ended.out) == (0, f"{run / 'report.html'}\n")
    assert joined(ended.err) == f"next: melbo explore {run}\n"
    assert (run / "report.html").is_file()


def test_an_ablated_model_is_shown_and_saved(melbo, home, tmp_path):
    out = tmp_path / "ablated"
    chosen = ("--feature", 0, "--feature", 2, "--side", "target")
    argv = ("ablate", "run", *chosen, "--prompt", "dog", *SHORT)
    ended = melbo(*argv, "--out", out, "--json")
    assert ended.code == 0
    assert strict(ended.out).keys() == {"prompt", "unsteered", "ablated"}
    U = FeatureSet.load(home / "run").U[[0, 2]]
    weights = load_file(out / "model.safetensors")
    written = [
        W for name, W in weights.items() if name.endswith(("o_proj.weight", "down_proj.weight"))
    ]
    assert len(written) == 8
    assert max((U @ W).abs().max().item() for W in written) < 1e-5
    assert "already holds a model" in one_line(melbo(*argv, "--out", out))
    # the model itself is untouched
    assert melbo("sample", "run", "--prompt", "dog", *SHORT).code == 0


def test_ablate_prints_both_replies(melbo):
    ended = melbo("ablate", "run", "--feature", 0, "--prompt", "dog", *SHORT)
    assert ended.code == 0
    said = ended.out.partition("next: ")
    assert re.fullmatch(r"dog\nunsteered: .*(\n  .*)*\nablated: .*(\n  .*)*\n\n", said[0])
    assert said[2] == "melbo ablate run --feature 0 --out ablated\n"


def test_watch_prints_what_fires(melbo, tmp_path):
    pairs = [(a, b) for a in ("he", "she", "it", "you") for b in ("cat", "dog", "sun")]
    (tmp_path / "ordinary.txt").write_text("\n".join(f"{a} and {b} ?" for a, b in pairs))
    argv = ("watch", "run", "--prompts", "good.txt", "--reference", tmp_path / "ordinary.txt")
    found = strict(melbo(*argv, "--json").out)
    assert found["num_reference"] == 12
    assert len(found["counts"]) == 2
    out = melbo(*argv).out
    assert "firings on 2 prompts" in out
    assert len(found["closest"]) == 5
    first = (found["firings"] or found["closest"])[0]
    assert ("nothing fires" in out) == (not found["firings"])
    assert f" {first['z']:.1f} " in out
    assert out.endswith(f"\nnext: melbo chat run --feature {first['feature']}\n")


def test_adapters_are_fitted_ranked_sampled_and_exported(melbo, tmp_path):
    run = tmp_path / "run"
    method = ("--method", "cpe", "--max-steps", 2, "--target", 3)
    argv = ("fit", "tiny", "--prompt", PROMPT, "--out", run, "-m", 3, *method)
    ended = melbo(*argv, "--band", 0, 2, "--scale", 2)
    assert ended.code == 0, ended.err
    assert melbo("rank", run, *SHORT, "--controls", 2).code == 0
    said = melbo("sample", run, "--prompt", "dog", "--feature", 1, *SHORT, "--json").rows
    talk = melbo("chat", run, "--feature", 1, *SHORT, stdin="dog\n/quit\n")
    assert said[1]["text"].strip() in talk.out
    exported = melbo("export", run, "--feature", 2, "--out", tmp_path / "loras")
    folder = tmp_path / "loras" / "feature-2"
    assert exported.out.strip() == str(folder)
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors"]
    for command in (
        ("export", "run", "--out", "new"),
        ("ablate", run, "--prompt", "dog"),
        ("sample", run, "--prompt", "dog", "--average", "mean"),
    ):
        one_line(melbo(*command))
