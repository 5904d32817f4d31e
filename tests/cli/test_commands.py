"""The command line as its users meet it: what goes in, and what comes out."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from command_line import (
    FIT,
    PROMPT,
    SCRIPT,
    SHORT,
    WHOLE,
    as_typed,
    contents,
    environment,
    one_line,
    real,
    strict,
)
from safetensors.torch import load_file

from melbo import FeatureSet, cli
from melbo.cli import chat


def test_fit_prints_json_and_nothing_else(home):
    said = strict((home / "fit.json").read_text())
    run = json.loads((home / "run" / "run.json").read_text())
    assert said.keys() == {"run", "scale", "status", "stats", "history", "stability"}
    assert said["run"] == "run"
    assert said["scale"] == run["scale"] == run["calibration"]["scale"]
    assert said["history"] == run["fit"]["history"]
    assert len(FeatureSet.load(home / "run")) == 4


def test_rank_prints_json_and_nothing_else(home):
    said = strict((home / "rank.json").read_text())
    assert said == json.loads((home / "run" / "ranking.json").read_text())
    assert sorted(r["index"] for r in said["features"]) == [0, 1, 2, 3]
    assert len(said["controls"]) == 2
    assert sorted(p.name for p in (home / "run").iterdir()) == WHOLE


@pytest.mark.parametrize("method", ["linear", "projected", "quadratic", "exponential", "random"])
def test_every_method_fits_from_the_command_line(melbo, tmp_path, method):
    ended = melbo(
        *FIT[:4], "--out", tmp_path / "run", "-m", 3, "--method", method, "--scale", 1, "--seed", 3
    )
    assert ended.code == 0
    assert ended.out.startswith("3 features at R = 1 explain")
    assert f"next: melbo rank {tmp_path / 'run'}" in ended.out
    bank = FeatureSet.load(tmp_path / "run")
    assert (bank.source, bank.target, bank.meta["seed"], bank.scale) == (
        1,
        3,
        3,
        1.0,
    )  # 8/30 and 20/30 of four blocks


def test_options_of_the_map_reach_the_map(melbo, tmp_path):
    told = (
        "--source",
        -4,
        "--target",
        -1,
        "--target-tokens",
        2,
        "--skip-first",
        "--normalise-target",
        "--concatenate",
        "--system",
        "Sure",
    )
    ended = melbo(
        "fit",
        "tiny",
        "--prompt",
        "dog",
        "--prompts",
        "good.txt",
        "--out",
        tmp_path / "run",
        "-m",
        2,
        "--scale",
        1,
        *told,
    )
    assert ended.code == 0
    kept = json.loads((tmp_path / "run" / "run.json").read_text())["map"]
    assert kept["prompts"]["texts"] == ["dog", "he or she", "red or blue ?"]
    assert kept["prompts"]["system"] == "Sure"
    assert (kept["source"], kept["target"], kept["target_tokens"]) == (1, 4, 2)
    assert all(kept[name] is True for name in ("skip_first", "normalise_target", "concatenate"))


def test_a_quick_fit_draws_no_bar(melbo, tmp_path):
    ended = melbo(*FIT[:4], "--out", tmp_path / "run", "-m", 3, "--scale", 1)
    assert ended.code == 0
    assert ended.err == ""  # bars are for what takes longer than a second


def test_rank_prints_a_table_with_unsteered_features_and_controls(melbo, home, run):
    ended = melbo(
        "rank",
        run,
        *SHORT,
        "--controls",
        2,
        "--top",
        3,
        "--by",
        "contrast",
        "--contrast",
        "yes",
        "no",
    )
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


def test_sample_prints_the_unsteered_reply_first(melbo, home):
    ended = melbo(
        "sample",
        "run",
        "--prompt",
        "dog",
        "--prompts",
        "good.txt",
        "--feature",
        2,
        "--feature",
        0,
        *SHORT,
        "--json",
    )
    assert (ended.code, ended.err) == (0, "")
    rows = [strict(line) for line in ended.out.split("\n") if line]
    assert [(r["prompt"], r["feature"], r["strength"]) for r in rows] == [
        (p, f, s)
        for p in ("dog", "he or she", "red or blue ?")
        for f, s in ((None, 0.0), (2, 1.0), (0, 1.0))
    ]
    plain = melbo("sample", "run", "--prompt", "dog", "--feature", 2, "--feature", 0, *SHORT)
    assert (plain.code, plain.err) == (0, "")
    for row, label in zip(rows[:3], ("unsteered", "feature 2", "feature 0"), strict=True):
        assert f"{label}: {row['text'].strip() or '(empty reply)'}\n" in plain.out


def test_sample_says_what_rank_said(melbo, home):
    kept = [
        json.loads(line)
        for line in (home / "run" / "completions.jsonl").read_text().split("\n")
        if line
    ]
    expected = [c["text"] for c in kept if c["prompt"] == 0 and c["kind"] != "control"]
    ended = melbo(
        "sample", "run", "--prompt", kept[0]["prompt_text"], "--max-new-tokens", 4, "--json"
    )
    assert [strict(line)["text"] for line in ended.out.split("\n") if line] == expected


def test_strength_zero_is_the_unsteered_reply(melbo, home):
    ended = melbo("sample", "run", "--prompt", "dog", "--strength", 0, *SHORT, "--json")
    assert len({strict(line)["text"] for line in ended.out.split("\n") if line}) == 1


def test_report_prints_where_it_is(melbo, run):
    (run / "report.html").unlink()
    ended = melbo("report", run)
    assert (ended.code, ended.out, ended.err) == (0, f"{run / 'report.html'}\n", "")
    assert (run / "report.html").is_file()


def test_calibrate_gives_the_scale_that_fit_uses(melbo, home):
    ended = melbo("calibrate", "tiny", "--prompt", PROMPT, "--json")
    assert ended.code == 0
    found = strict(ended.out)
    assert found["scale"] == pytest.approx(
        json.loads((home / "run" / "run.json").read_text())["scale"], rel=1e-6
    )
    assert found["nonlinearity"] == 0.5
    plain = melbo("calibrate", "tiny", "--prompt", PROMPT, "--nonlinearity", 0.3)
    assert plain.code == 0
    assert float(re.search(r"^R = ([\d.]+), ", plain.out, re.MULTILINE)[1]) < found["scale"]


def test_bench_prints_a_line_for_each_thing_and_keeps_it_all(melbo, home):
    small = ("bench", "speed", "tiny", "-m", 3, "--repeats", 1, "--threads", 1)
    ended = melbo(*small, "--out", "bench.json")
    assert ended.code == 0
    kept = json.loads((home / "bench.json").read_text())
    (home / "bench.json").unlink()
    rows = kept["threads"]["1"]
    assert len(rows) == len(ended.out.splitlines()) >= 7
    assert all(row["median_seconds"] > 0 for row in rows)
    assert kept["environment"]["torch"] == torch.__version__
    plain = strict(melbo(*small, "--no-reference", "--json").out)
    assert all("reference" not in (row["versus"] or {}) for row in plain["threads"]["1"])


def test_the_fast_mode_is_kept_with_the_run(melbo, home):
    assert melbo(*FIT, "--positions", "target", "--tokens-per-pass", 64).code == 0
    assert json.loads((home / "new" / "run.json").read_text())["map"]["positions"] == "target"
    assert melbo("sample", "new", "--prompt", PROMPT, *SHORT).code == 0
    shutil.rmtree(home / "new")


def test_a_conversation_through_a_pipe(home):
    lines = [
        "hello you",
        "/feature 1",
        "hello you",
        "/strength 0",
        "hello you",
        "/feature 99",
        "/strength",
        "/bogus",
        "/",
        "/help",
        "/reset",
        "/off",
    ]
    before = contents(home / "run")
    ended = real(
        "chat",
        "run",
        "--max-new-tokens",
        4,
        stdin="\n".join([*lines, "", "dog", "/quit", "never read", ""]),
        cwd=home,
    )
    assert ended.code == 0
    assert "Traceback" not in ended.err
    said = ended.err.splitlines()
    assert said[0].startswith("/feature N")
    assert said[1:3] == ["feature 1 × 1", "feature 1 × 0"]
    assert "expected 0 to 3" in said[3]
    assert "/strength needs a number" in said[4]
    assert said[5] == said[6] == said[7] == said[0]
    assert said[8:] == ["feature 1 × 0", "unsteered"]
    states = re.findall(r"\[([^\]]*)\] you: ", ended.out)
    assert states[:5] == [
        "unsteered",
        "unsteered",
        "feature 1 × 1",
        "feature 1 × 1",
        "feature 1 × 0",
    ]
    assert states[-1] == "unsteered"
    assert contents(home / "run") == before


def test_a_conversation_ends_with_its_input(melbo, home):
    ended = melbo("chat", "run", "--feature", 1, "--strength", 2, stdin="")
    assert ended.code == 0
    assert "[feature 1 × 2] you: " in ended.out


def test_force_replaces_a_run_and_what_was_made_of_it(melbo, run):
    ended = melbo(*FIT[:4], "--out", run, "-m", 2, "--scale", 1, "--force")
    assert ended.code == 0
    assert len(FeatureSet.load(run)) == 2
    assert sorted(p.name for p in run.iterdir()) == [
        "features.safetensors",
        "report.html",
        "run.json",
    ]


# Help


def test_seeds_say_how_well_features_are_found_again(melbo, tmp_path):
    ended = melbo(
        *FIT[:4], "--out", tmp_path / "run", "-m", 2, "--scale", 3, "--max-steps", 2, "--seeds", 2
    )
    assert ended.code == 0
    assert "found again with 2 seeds" in ended.out
    assert FeatureSet.load(tmp_path / "run").meta["stability"]["seeds"] == 2


@pytest.mark.parametrize(
    ("method", "layers"), [("actadd", ()), ("sara", ("--layer", 1, "--layer", 2))]
)
def test_a_pair_of_prompts_is_sampled_and_talked_to(melbo, tmp_path, method, layers):
    run = tmp_path / "run"
    made = melbo(
        "contrast",
        "tiny",
        "--method",
        method,
        "--plus",
        "yes and yes",
        "--minus",
        "no",
        "--coefficient",
        2,
        *layers,
        "--out",
        run,
    )
    assert made.code == 0
    assert f"{method}: layer 1" in made.out
    said = [
        strict(line)["text"]
        for line in melbo("sample", run, "--prompt", "dog", *SHORT, "--json").out.splitlines()
    ]
    off = [
        strict(line)["text"]
        for line in melbo(
            "sample", run, "--prompt", "dog", *SHORT, "--strength", 0, "--json"
        ).out.splitlines()
    ]
    assert len(said) == 2
    assert off == [said[0], said[0]]
    talk = melbo("chat", run, "--feature", 0, *SHORT, stdin="dog\n/quit\n")
    assert talk.code == 0
    assert said[1].strip() in talk.out


def test_caa_from_a_file_of_pairs_is_a_run_like_any_other(melbo, home, tmp_path):
    (home / "pairs.tsv").write_text("yes she was red\tno he was blue\nit is a dog\twe and cat\n")
    made = melbo(
        "contrast",
        "tiny",
        "--method",
        "caa",
        "--pairs",
        "pairs.tsv",
        "--layer",
        1,
        "--out",
        tmp_path / "run",
    )
    assert made.code == 0
    assert "caa: norm" in made.out
    assert len(FeatureSet.load(tmp_path / "run")) == 1
    assert melbo("rank", tmp_path / "run", *SHORT, "--controls", 1).code == 0


def test_features_merge_into_one(melbo, home):
    both = melbo(
        "sample",
        "run",
        "--prompt",
        "dog",
        "--feature",
        0,
        "--feature",
        1,
        "--merge",
        "mean",
        *SHORT,
        "--json",
    )
    assert [strict(line)["feature"] for line in both.out.splitlines()] == [None, "mean of 0, 1"]
    bank = FeatureSet.load(home / "run")
    assert torch.allclose(
        bank[[0, 1]].merged("mean").V[0],
        torch.nn.functional.normalize(bank.V[0] + bank.V[1], dim=0),
        atol=1e-6,
    )
    assert abs(bank.merged("svd").V[0] @ torch.linalg.svd(bank.V)[2][0]) == pytest.approx(
        1, abs=1e-5
    )
    assert melbo("chat", "run", "--merge", "svd", *SHORT, stdin="dog\n").code == 0


def test_an_ablated_model_is_shown_and_saved(melbo, home, tmp_path):
    out = tmp_path / "ablated"
    argv = (
        "ablate",
        "run",
        "--feature",
        0,
        "--feature",
        2,
        "--side",
        "target",
        "--prompt",
        "dog",
        *SHORT,
    )
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
    one_line(melbo(*argv, "--out", out))
    assert (
        melbo("sample", "run", "--prompt", "dog", *SHORT).code == 0
    )  # the model itself is untouched


def test_watch_prints_what_fires(melbo, home, tmp_path):
    (tmp_path / "ordinary.txt").write_text(
        "\n".join(
            f"{a} and {b} ?" for a in ("he", "she", "it", "you") for b in ("cat", "dog", "sun")
        )
    )
    argv = ("watch", "run", "--prompts", "good.txt", "--reference", tmp_path / "ordinary.txt")
    found = strict(melbo(*argv, "--json").out)
    assert found["num_reference"] == 12
    assert len(found["counts"]) == 2
    assert "firings on 2 prompts" in melbo(*argv).out


def test_adapters_are_fitted_ranked_sampled_selected_and_exported(melbo, home, tmp_path):
    run = tmp_path / "run"
    argv = (
        "fit",
        "tiny",
        "--prompt",
        PROMPT,
        "--out",
        run,
        "-m",
        3,
        "--method",
        "cpe",
        "--max-steps",
        2,
        "--target",
        3,
    )
    ended = melbo(*argv, "--band", 0, 2, "--scale", 2)
    assert ended.code == 0, ended.err
    assert melbo("rank", run, *SHORT, "--controls", 2).code == 0
    said = [
        strict(line)["text"]
        for line in melbo(
            "sample", run, "--prompt", "dog", "--feature", 1, *SHORT, "--json"
        ).out.splitlines()
    ]
    talk = melbo("chat", run, "--feature", 1, *SHORT, stdin="dog\n/quit\n")
    assert said[1].strip() in talk.out
    exported = melbo("export", run, "--feature", 2, "--out", tmp_path / "loras")
    assert exported.out.strip() == str(tmp_path / "loras" / "feature-2")
    assert sorted(p.name for p in (tmp_path / "loras" / "feature-2").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    for command in (
        ("export", "run", "--out", "new"),
        ("ablate", run, "--prompt", "dog"),
        ("sample", run, "--prompt", "dog", "--merge", "mean"),
    ):
        one_line(melbo(*command))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--method", "cpe", "--band", 3, 9), "the band is blocks 3 to 8"),
        (("--method", "cpe", "--band", 0, 4, "--target", 2), "expected the band before it"),
        (("--method", "cpe", "--source", 1), "--source is not for adapters"),
        (("--method", "cpe", "--positions", "target"), "--positions is not for adapters"),
        (("--band", 0, 2), "--band and --matrix belong to the method cpe"),
        (("--method", "cpe", "--matrix", "head"), "head"),
        (("--seeds", 0), "seeds"),
    ],
    ids=as_typed,
)
def test_adapters_that_cannot_be_fitted(refuses, options, says):
    assert re.search(says, refuses(*FIT, "--scale", 1, *options))


def test_select_reports_the_test_and_goes_on_where_it_was(melbo, run, tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"w{i} and dog\n" for i in range(40, 46)))
    (tmp_path / "b.txt").write_text("".join(f"w{i} and cat\n" for i in range(40, 43)))
    (tmp_path / "mine.py").write_text("def long(prompt, reply):\n    return len(reply)\n")
    argv = (
        "select",
        run,
        "--validation",
        tmp_path / "a.txt",
        "--test",
        tmp_path / "b.txt",
        *SHORT,
        "--budget",
        24,
    )
    ended = melbo(*argv, "--judge", f"{tmp_path / 'mine.py'}:long")
    assert ended.code == 0, ended.err
    assert "completions: 4 features to" in ended.err
    assert re.search(r"feature \d: .* on 3 test prompts .95 %: .*; unsteered ", ended.out)
    again = melbo(*argv, "--judge", f"{tmp_path / 'mine.py'}:long", "--json")
    assert strict(again.out)["completions"] <= 24
    assert "scores of another selection" in one_line_of(melbo(*argv, "--judge", "regex:dog"))
    assert melbo(*argv, "--judge", "regex:dog", "--force").code == 0
    assert melbo(*argv, "--contrast", "yes", "no", "--force").code == 0
    (tmp_path / "c.tsv").write_text("is it red ?\tyes\nis it blue ?\tno\n")
    (tmp_path / "d.tsv").write_text("is it a dog ?\tyes\nis it a cat ?\tno\n")
    files = (
        "select",
        run,
        "--validation",
        tmp_path / "c.tsv",
        "--test",
        tmp_path / "d.tsv",
        *SHORT,
        "--force",
    )
    assert melbo(*files, "--answers").code == 0
    for wrong, says in (
        (("--budget", 3), "too small"),
        ((), "say how to score"),
        (("--judge", "regex:("), "not a regular expression"),
    ):
        assert re.search(
            says,
            one_line_of(
                melbo(
                    *argv,
                    *wrong,
                    *(("--judge", "regex:dog", "--force") if "--budget" in wrong else ()),
                )
            ),
        )


def one_line_of(ended):
    """The last line of a command that had said what it would do before it failed."""
    assert ended.code == 2
    return ended.err.strip().splitlines()[-1]


def test_compare_writes_table_and_picture(melbo, tmp_path):
    out = tmp_path / "new"
    argv = (
        "compare",
        "tiny",
        "--prompt",
        PROMPT,
        "--out",
        out,
        "--scale",
        2,
        "-m",
        2,
        "--seeds",
        1,
        "--times",
        1,
        "--steps",
        2,
        *SHORT,
    )
    ended = melbo(*argv, "--way", "linear", "--way", "random")
    assert ended.code == 0
    assert all(name in ended.out for name in ("linear +", "linear −", "random +", "compare.png"))
    assert sorted(p.name for p in out.iterdir()) == [
        "compare.json",
        "compare.md",
        "compare.png",
        "completions.jsonl",
    ]
    assert "already holds" in one_line(melbo(*argv))


def test_help_of_the_console_script():
    ended = real("--help")
    assert (ended.code, ended.err) == (0, "")
    for name in cli.cli.commands:
        assert re.search(rf"^  {name}  ", ended.out, re.MULTILINE)


@pytest.mark.parametrize("name", list(cli.cli.commands))
def test_help_of_every_command_says_all_options(melbo, name):
    ended = melbo(name, "--help")
    assert (ended.code, ended.err) == (0, "")
    for param in cli.cli.commands[name].params:
        if param.param_type_name == "argument":
            assert param.human_readable_name in ended.out
        else:
            assert all(option in ended.out for option in param.opts)
            assert param.help, f"{param.name} says nothing about itself"


def test_version(melbo):
    ended = melbo("--version")
    assert ended.code == 0
    assert ended.out.endswith("melbo, version 0.1.0\n")


def test_without_a_command_it_shows_the_help(melbo):
    ended = melbo()
    assert "error:" not in ended.err
    assert re.search(r"^  fit  ", ended.out + ended.err, re.MULTILINE)


# Ctrl-C


def wait_for_sweeps(log, process, at_least=3):
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        seen = re.findall(r"(\d+)/1000000", log.read_text(errors="replace"))
        if seen and int(seen[-1]) >= at_least:
            return
        time.sleep(0.1)
    raise AssertionError(f"no sweep in a minute: {log.read_text()}")


def test_ctrl_c_keeps_the_last_sweep(home, tmp_path):
    log, run = tmp_path / "stderr", tmp_path / "run"
    endless = ("--max-steps", "1000000", "--tol", "0", "--scale", "1", "-m", "8", "--json")
    with log.open("w") as err:
        process = subprocess.Popen(
            [SCRIPT, "fit", home / "tiny", "--prompt", PROMPT, "--out", run, *endless], stdout=subprocess.PIPE, stderr=err, env=environment(),
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests that run in the background ignore it, and hand that on
        )  # fmt: skip
        try:
            wait_for_sweeps(log, process)
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, log.read_text()
    said = log.read_text()
    assert "Traceback" not in said
    assert f"what had been found by then is in {run}" in said
    assert strict(out)["status"] == "interrupted"
    kept = json.loads((run / "run.json").read_text())["fit"]
    assert kept["status"] == "interrupted"
    assert len(kept["history"]) >= 3
    assert len(FeatureSet.load(run)) == 8
    assert (run / "report.html").is_file()


class Interrupting:
    """A bar during whose drawing Ctrl-C is pressed."""

    def __init__(self, at):
        self.left = at

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self, n=1):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt

    def set_postfix(self, *args, **more):
        pass


def test_ctrl_c_between_two_sweeps_keeps_the_last_one(melbo, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["melbo.methods.iterate"], "track", lambda *a: Interrupting(3))
    ended = melbo(*FIT[:4], "--out", tmp_path / "run", "-m", 3, "--scale", 1)
    assert ended.code == 130
    assert "interrupted after sweep 3" in ended.err
    kept = json.loads((tmp_path / "run" / "run.json").read_text())["fit"]
    assert (kept["status"], len(kept["history"])) == ("interrupted", 3)


def test_ctrl_c_before_the_first_sweep_leaves_nothing(melbo, home, monkeypatch):
    before = contents(home)
    monkeypatch.setattr(sys.modules["melbo.maps.calibrate"], "track", lambda *a: Interrupting(2))
    ended = melbo(*FIT)
    assert (ended.code, ended.out, ended.err.strip()) == (130, "", "interrupted")
    assert contents(home) == before


def test_ctrl_c_in_a_conversation(melbo, monkeypatch):
    monkeypatch.setattr(
        chat.Chat, "reply", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    ended = melbo("chat", "run", stdin="dog\n")
    assert ended.code == 130
    assert ended.err.endswith("interrupted\n")


# What the other files of a run do not depend on


def test_a_run_is_the_same_every_time(melbo, home, tmp_path):
    for name in ("one", "two"):
        assert melbo(*FIT[:4], "--out", tmp_path / name, "-m", 4).code == 0
    one, two, first = (
        FeatureSet.load(folder) for folder in (tmp_path / "one", tmp_path / "two", home / "run")
    )
    assert torch.equal(one.V, two.V)
    assert torch.equal(one.alpha, two.alpha)
    assert torch.allclose(one.V, first.V, atol=1e-4)  # another process, with what else it has set
