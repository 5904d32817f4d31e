"""Bad input: one line that says what to do, no traceback, nothing written and nothing lost."""

import json
import re
import shutil
import sys
import time

import pytest
from command_line import FIT, PROMPT, SHORT, as_typed, contents, one_line, real

from melbo.cli import pipeline as runs


def test_unknown_hub_id_by_the_console_script(tmp_path):
    start = time.monotonic()
    ended = real("fit", "no-such-org/no-such-model", "--prompt", PROMPT, "--out", tmp_path / "new")
    assert "no model 'no-such-org/no-such-model'" in one_line(ended)
    assert time.monotonic() - start < 60
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("hollow", "no model 'hollow'"),
        ("./nowhere", "no model './nowhere'"),
        ("missing.gguf", "no file missing.gguf"),
        ("broken.gguf", "cannot read broken.gguf"),
        ("unweighted", "cannot load 'unweighted'"),
        ("cut", "cannot load 'cut'"),
        ("mismatched", "cannot load 'mismatched'"),
        ("translator", "translator"),
        ("infinite", r"hidden_states\[2\].*not finite"),
        ("mute", "no chat template.*--text"),
    ],
)
def test_models_that_cannot_be_used(refuses, tmp_path, monkeypatch, model, says):
    monkeypatch.setenv("MELBO_CACHE", str(tmp_path / "cache"))
    assert re.search(says, refuses("fit", model, *FIT[2:]))


def test_a_model_too_large_is_refused_before_it_is_read(refuses):
    start = time.monotonic()
    err = refuses("fit", "absurd", *FIT[2:])
    assert re.search(
        r"absurd needs 5\d{4}\.\d GiB for its weights in float32, .* GiB are free: use a smaller dtype",
        err,
    )
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--source", 3, "--target", 3), "source is 3 and target is 3"),
        (("--source", -1, "--target", 2), "expected source < target"),
        (("--source", 5), "source is 5, but tiny has 4 blocks"),
        (("--target", 5), "target is 5, but tiny has 4 blocks"),
        (("--target", -6), "target is -6"),
        (("--target-tokens", 0), "target.tokens"),
        (("--target-tokens", 40), "fewer than the 40 needed"),
        (("--prompt", "  "), "prompt 1 is blank"),
        (("--prompt", "dog " * 80), r"prompt 1 has 8\d tokens, tiny reads at most 64"),
        (
            ("--prompt", "\udcff"),
            "prompt 1|UTF-8",
        ),  # what Python makes of an argument that is not UTF-8
        (("--prompts", "missing.txt"), "cannot read missing.txt"),
        (("--prompts", "empty.txt"), "empty.txt holds no prompts"),
        (("--prompts", "latin.txt"), "latin.txt.*not UTF-8"),
        (("--prompts", "tiny"), "'tiny' is a directory"),
        (("-m", 0), "num.factors"),
        (("-m", -2), "num.factors"),
        (("-m", "many"), "'many' is not a valid integer"),
        (("-m", 33, "--orthogonalise", "qr"), "num_factors is 33.*at most 32"),
        (("-m", 33, "--method", "linear"), "num_factors is 33"),
        (("--scale", 0), "scale is 0"),
        (("--scale", -1), "scale is -1"),
        (("--scale", "nan"), "scale is nan"),
        (("--scale", "inf"), "scale is inf"),
        (("--scale", 1e30), "not finite at scale"),
        (("--tol", "nan", "--scale", 1), "tol"),
        (("--max-steps", 0, "--scale", 1), "max.steps"),
        (("--seed", 2**70), "seed"),
        (("--method", "linear", "--start", "backward"), "linear has no setting start"),
        (("--method", "random", "--max-steps", 3), "random has no setting max_steps"),
        (("--method", "quadratic", "--orthogonalise", "soft"), "soft"),
        (("--method", "magic"), "'magic' is not one of"),
        (("--magic",), "No such option '--magic'"),
        (("--dtype", "float7"), "no dtype 'float7'"),
        (("--dtype", "int8"), "int8"),
        (("--dtype", "float8_e4m3fn"), "float8_e4m3fn"),
        (("--device", "toaster"), "toaster"),
        (("--device", "cuda:99"), "cuda:99"),
        (("--device-map", "toaster"), "cannot load .* device_map"),
        (("--blocks", "model.nothing"), "no list of blocks at 'model.nothing'"),
    ],
    ids=as_typed,
)
def test_settings_of_fit_that_cannot_work(refuses, options, says):
    assert re.search(says, refuses(*FIT, *options))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("fit", "tiny", "--out", "new"), "got no prompts: give --prompt"),
        (("fit", "tiny", "--out", "new", "--prompts", "empty.txt"), "holds no prompts"),
        (
            ("fit", "tiny", "--text", "--prompt", "dog", "--out", "new"),
            "prompt 0 has 2 tokens, fewer than the 3 needed",
        ),
        (("fit", "tiny", "--prompt", PROMPT), "Missing option '--out'"),
        (("fit", "tiny", "--prompt", PROMPT, "--out", "good.txt"), "'good.txt' is a file"),
        (("fit",), "Missing argument 'MODEL'"),
        (("calibrate", "tiny"), "got no prompts"),
        (("calibrate", "tiny", "--prompt", PROMPT, "--nonlinearity", 0), "nonlinearity is 0"),
        (("calibrate", "tiny", "--prompt", PROMPT, "--nonlinearity", "nan"), "nonlinearity is nan"),
        (
            ("calibrate", "tiny", "--prompt", PROMPT, "--nonlinearity", 100),
            "never rises through 100",
        ),
        (("cook",), "No such command 'cook'"),
    ],
    ids=as_typed,
)
def test_command_lines_that_cannot_work(refuses, argv, says):
    assert re.search(says, refuses(*argv))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("rank", "run", "--by", "contrast"), "needs two strings"),
        (("rank", "run", "--by", "contrast", "--contrast", "yes"), "requires 2 arguments"),
        (("rank", "run", "--by", "beauty"), "'beauty' is not one of"),
        (("rank", "run", "--contrast", "yes", "yes sun"), "begin with the same token"),
        (("rank", "run", "--contrast", "yes", ""), "at least one token each"),
        (("rank", "run", "--held-out", "same.txt"), "held-out prompt.*was used before"),
        (("rank", "run", "--validation", "same.txt"), "validation prompt.*was used before"),
        (
            ("rank", "run", "--validation", "good.txt", "--held-out", "good.txt"),
            "held-out prompt.*was used before",
        ),
        (("rank", "run", "--held-out", "missing.txt"), "cannot read missing.txt"),
        (("rank", "run", "--held-out", "empty.txt"), "holds no prompts"),
        (("rank", "run", "--held-out", "latin.txt"), "not UTF-8"),
        (("rank", "run", "--controls", 0), "controls"),
        (("rank", "run", "--max-new-tokens", 0), "max.new.tokens"),
        (("rank", "run", "--batch-size", 0), "batch.size"),
        (("rank", "run", "--seed", 2**70), "seed"),
        (("rank", "run", "--model", "other"), "fitted on tiny .*this is other .*"),
        (("sample", "run"), "got no prompts"),
        (("sample", "run", "--prompt", " "), "prompt 0 is blank"),
        (
            ("sample", "run", "--prompt", "dog", "--feature", 4),
            "got feature 4, there are 4: expected 0 to 3",
        ),
        (("sample", "run", "--prompt", "dog", "--feature", -1), "got feature -1"),
        (("sample", "run", "--prompt", "dog", "--max-new-tokens", 0), "max.new.tokens"),
        (("sample", "run", "--prompt", "dog", "--strength", "nan"), "strength"),
        (("sample", "run", "--prompt", "dog", "--strength", "inf"), "strength"),
        (
            ("sample", "run", "--prompt", "dog", "--model", "other"),
            "fitted on tiny .*this is other .*",
        ),
        (("chat", "run", "--feature", 4), "got feature 4, there are 4: expected 0 to 3"),
        (("chat", "run", "--strength", "nan", "--feature", 0), "strength"),
        (("chat", "run", "--max-new-tokens", 0), "max.new.tokens"),
        (("chat", "run", "--model", "other"), "fitted on tiny .*this is other .*"),
        (("chat", "run", "--feature", 0, "--feature", 1), "got more than one feature"),
        (("ablate", "run", "--feature", 0), "got no prompts"),
        (("ablate", "run", "--feature", 9, "--prompt", "dog"), "got feature 9"),
        (
            ("ablate", "run", "--model", "other", "--prompt", "dog"),
            "fitted on tiny .*this is other .*",
        ),
        (("watch", "run"), "got no prompts"),
        (("watch", "run", "--prompt", "dog", "--reference", "good.txt"), "reference"),
        (
            ("watch", "run", "--prompt", "dog", "--model", "other"),
            "fitted on tiny .*this is other .*",
        ),
    ],
    ids=as_typed,
)
def test_settings_of_a_run_that_cannot_work(refuses, argv, says):
    assert re.search(says, refuses(*argv, stdin="dog\n"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--method", "caa"), "caa takes --pairs FILE"),
        (
            ("--method", "caa", "--pairs", "uneven.tsv"),
            "line 2 of uneven.tsv holds 1 texts: expected two with a tab between",
        ),
        (("--method", "caa", "--pairs", "good.txt"), "line 1 of good.txt holds 1 texts"),
        (("--method", "caa", "--pairs", "nowhere.tsv"), "cannot read nowhere.tsv"),
        (
            ("--method", "caa", "--pairs", "even.tsv", "--layer", 1, "--layer", 2),
            "caa adds one vector at one layer",
        ),
        (("--method", "actadd", "--plus", "yes"), "--plus TEXT --minus TEXT"),
        (
            ("--method", "sara", "--plus", "yes", "--minus", "no", "--layer", 1, "--layer", -4),
            "got the layers 1, -4: expected",
        ),
        (("--method", "sara", "--plus", "yes", "--minus", "no", "--layer", 9), "layer is 9"),
        (
            ("--method", "actadd", "--plus", "yes", "--minus", "no", "--layer", 4),
            "no block reads layer 4",
        ),
        (
            ("--method", "actadd", "--plus", "yes", "--minus", "no", "--truncation", 2),
            "--truncation to sara",
        ),
        (
            ("--method", "actadd", "--plus", "yes", "--minus", "no", "--coefficient", "nan"),
            "strength is nan",
        ),
    ],
    ids=as_typed,
)
def test_contrasts_that_cannot_be_made(refuses, home, options, says):
    (home / "uneven.tsv").write_text("yes\tno\nred\n")
    (home / "even.tsv").write_text("yes\tno\n")
    assert re.search(says, refuses("contrast", "tiny", *options, "--out", "new"))


def test_a_contrast_of_another_model(melbo, tmp_path):
    run = tmp_path / "run"
    assert (
        melbo(
            "contrast", "tiny", "--method", "sara", "--plus", "yes", "--minus", "no", "--out", run
        ).code
        == 0
    )
    for command in (("sample", run, "--prompt", "dog"), ("chat", run)):
        assert re.search(
            "fitted on tiny .*this is other .*", one_line(melbo(*command, "--model", "other"))
        )
    for command in ("rank", "report"):
        assert "kind 'contrast', expected 'features'" in one_line(melbo(command, run))
    saved = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**saved, "contrast": {"method": "sara"}}))
    assert "make it again" in one_line(melbo("chat", run))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--way", "best"), "best"),
        (("--times", -1), "one positive norm or more"),
        (("--held-out", "same.txt"), "one of the map's"),
        (("--concatenate",), "concatenated map"),
        (("--source", 9), "source is 9"),
    ],
    ids=as_typed,
)
def test_comparisons_that_cannot_be_made(refuses, options, says):
    assert re.search(
        says, refuses("compare", "tiny", "--prompt", PROMPT, "--scale", 1, "--out", "new", *options)
    )


def damage(run, what):
    kept, tensors = run / "run.json", run / "features.safetensors"
    if what == "missing":
        shutil.rmtree(run)
    elif what == "truncated json":
        kept.write_text(kept.read_text()[:200])
    elif what == "truncated tensors":
        tensors.write_bytes(tensors.read_bytes()[:-20])
    elif what == "schema":
        kept.write_text(json.dumps({**json.loads(kept.read_text()), "schema": 99}))
    elif what == "no scale":
        kept.write_text(json.dumps({**json.loads(kept.read_text()), "scale": None}))
    elif what == "no model":
        kept.write_text(
            json.dumps({**json.loads(kept.read_text()), "map": {"kind": "FunctionMap"}})
        )


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("missing", "no run in"),
        ("truncated json", "run.json is truncated or not JSON"),
        ("truncated tensors", "features.safetensors cannot be read"),
        ("schema", "schema 99.*reads 1"),
    ],
)
@pytest.mark.parametrize(
    "command",
    [("rank",), ("sample", "--prompt", "dog"), ("chat",), ("report",)],
    ids=lambda c: c[0],
)
def test_damaged_runs(melbo, run, command, what, says):
    damage(run, what)
    before = contents(run)
    assert re.search(says, one_line(melbo(command[0], run, *command[1:])))
    assert contents(run) == before


def test_a_scale_that_is_no_number(melbo, run):
    damage(run, "no scale")
    assert "scale" in one_line(melbo("report", run))


@pytest.mark.parametrize(
    "command", [("rank",), ("sample", "--prompt", "dog"), ("chat",)], ids=lambda c: c[0]
)
def test_a_run_without_a_language_model_has_nothing_to_load(melbo, run, command):
    damage(run, "no model")
    assert "not fitted on a language model" in one_line(melbo(command[0], run, *command[1:]))


def test_a_model_without_a_chat_template_has_no_conversations(melbo, tmp_path):
    text = (
        "fit",
        "mute",
        "--text",
        "--prompt",
        PROMPT,
        "--out",
        tmp_path / "run",
        "-m",
        2,
        "--scale",
        1,
    )
    assert melbo(*text).code == 0
    assert "no chat template: use melbo sample" in one_line(melbo("chat", tmp_path / "run"))
    assert melbo("sample", tmp_path / "run", "--prompt", "dog", *SHORT).code == 0


@pytest.mark.parametrize("command", [FIT[:4], ("demo",)], ids=lambda c: c[0])
def test_a_run_is_kept_and_the_model_not_even_loaded(refuses, monkeypatch, command):
    monkeypatch.setattr(
        sys.modules["melbo.cli.find"], "load", lambda *a, **k: pytest.fail("loaded the model first")
    )
    assert "run already holds a run: give another folder, or --force" in refuses(
        *command, "--out", "run"
    )


def test_what_is_left_of_a_run_is_kept_too(melbo, run):
    (run / "run.json").unlink()
    before = contents(run)
    assert "already holds a run" in one_line(melbo(*FIT[:4], "--out", run))
    assert contents(run) == before


@pytest.mark.parametrize("out", ["good.txt/new", "tiny/config.json/new/run"])
def test_a_folder_that_cannot_be_made_is_refused_before_the_time_is_spent(
    refuses, monkeypatch, out
):
    monkeypatch.setattr(
        sys.modules["melbo.cli.find"], "load", lambda *a, **k: pytest.fail("loaded the model first")
    )
    assert "cannot make the folder" in refuses(*FIT[:4], "--out", out)


@pytest.mark.parametrize(
    "wrong",
    [
        ("--source", 9),
        ("--scale", "nan"),
        ("--scale", 1e30),
        ("--prompt", " "),
        ("--method", "linear", "--start", "backward"),
    ],
)
def test_force_loses_nothing_to_a_fit_that_fails(refuses, wrong):
    refuses(*FIT[:4], "--out", "run", "--force", *wrong)


def test_force_loses_nothing_when_the_new_run_cannot_be_written(melbo, run, monkeypatch):
    before = contents(run)
    fitted = runs.fit_seeds

    def with_nan(*args, **more):
        found = fitted(*args, **more)
        object.__setattr__(
            found, "features", found.features.with_meta(odd=float("nan"))
        )  # not JSON
        return found

    monkeypatch.setattr(runs, "fit_seeds", with_nan)
    one_line(melbo(*FIT[:4], "--out", run, "--force", "--scale", 1, "-m", 2))
    assert contents(run) == before


def test_a_ranking_that_is_not_finite_is_not_half_written(melbo, refuses, home, tmp_path):
    # not-a-number behind every block, where no fit looks
    run = tmp_path / "run"
    assert melbo("fit", "speechless", *FIT[2:4], "--out", run, "-m", 2, "--scale", 1).code == 0
    before = contents(run)
    assert "finite" in refuses("rank", run, *SHORT, "--controls", 1)
    assert contents(run) == before


def test_replies_longer_than_the_model_reads(refuses, melbo, home, tmp_path):
    # absolute position embeddings end at 64
    assert (
        melbo("fit", "other", *FIT[2:4], "--out", tmp_path / "run", "-m", 2, "--scale", 1).code == 0
    )
    assert "64" in refuses(
        "sample", tmp_path / "run", "--prompt", PROMPT, "--feature", 0, "--max-new-tokens", 100
    )
