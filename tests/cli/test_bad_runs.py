"""Bad uses of a run, and damaged runs: one line that says what to do, and nothing lost."""

import json
import re
import shutil

import pytest
from command_line import FIT, PROMPT, SHORT, as_typed, contents, one_line

from melbo.cli import find, pipeline

OTHER = "fitted on tiny .*this is other .*"
COMMANDS = [("rank",), ("sample", "--prompt", "dog"), ("chat",)]


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
        (("rank", "run", "--model", "other"), OTHER),
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
        (("sample", "run", "--prompt", "dog", "--model", "other"), OTHER),
        (("chat", "run", "--feature", 4), "got feature 4, there are 4: expected 0 to 3"),
        (("chat", "run", "--strength", "nan", "--feature", 0), "strength"),
        (("chat", "run", "--max-new-tokens", 0), "max.new.tokens"),
        (("chat", "run", "--model", "other"), OTHER),
        (("chat", "run", "--feature", 0, "--feature", 1), "got more than one feature"),
        (("ablate", "run", "--feature", 0), "got no prompts"),
        (("ablate", "run", "--feature", 9, "--prompt", "dog"), "got feature 9"),
        (("ablate", "run", "--model", "other", "--prompt", "dog"), OTHER),
        (("watch", "run"), "got no prompts"),
        (("watch", "run", "--prompt", "dog", "--reference", "good.txt"), "reference"),
        (("watch", "run", "--prompt", "dog", "--model", "other"), OTHER),
    ],
    ids=as_typed,
)
def test_settings_of_a_run_that_cannot_work(refuses, argv, says):
    assert re.search(says, refuses(*argv, stdin="dog\n"))


def damage(run, what):
    kept, tensors = run / "run.json", run / "features.safetensors"

    def change(**fields):
        kept.write_text(json.dumps({**json.loads(kept.read_text()), **fields}))

    if what == "missing":
        shutil.rmtree(run)
    elif what == "truncated json":
        kept.write_text(kept.read_text()[:200])
    elif what == "truncated tensors":
        tensors.write_bytes(tensors.read_bytes()[:-20])
    elif what == "schema":
        change(schema=99)
    elif what == "no scale":
        change(scale=None)
    elif what == "no model":
        change(map={"kind": "FunctionMap"})


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("missing", "no run in"),
        ("truncated json", "run.json is truncated or not JSON"),
        ("truncated tensors", "features.safetensors cannot be read"),
        ("schema", "schema 99.*reads 1"),
    ],
)
@pytest.mark.parametrize("command", [*COMMANDS, ("report",)], ids=lambda c: c[0])
def test_damaged_runs(melbo, run, command, what, says):
    damage(run, what)
    before = contents(run)
    assert re.search(says, one_line(melbo(command[0], run, *command[1:])))
    assert contents(run) == before


def test_a_scale_that_is_no_number(melbo, run):
    damage(run, "no scale")
    assert "scale" in one_line(melbo("report", run))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0])
def test_a_run_without_a_language_model_has_nothing_to_load(melbo, run, command):
    damage(run, "no model")
    assert "not fitted on a language model" in one_line(melbo(command[0], run, *command[1:]))


def test_a_model_without_a_chat_template_has_no_conversations(melbo, tmp_path):
    run = tmp_path / "run"
    told = ("--text", "--prompt", PROMPT, "--out", run, "-m", 2, "--scale", 1)
    assert melbo("fit", "mute", *told).code == 0
    assert "no chat template: use melbo sample" in one_line(melbo("chat", run))
    assert melbo("sample", run, "--prompt", "dog", *SHORT).code == 0


@pytest.fixture
def unloaded(monkeypatch):
    """Fail as soon as a model is loaded."""
    monkeypatch.setattr(find, "load", lambda *a, **k: pytest.fail("loaded the model first"))


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize("command", [FIT[:4], ("demo",)], ids=lambda c: c[0])
def test_a_run_is_kept_and_the_model_not_even_loaded(refuses, command):
    said = refuses(*command, "--out", "run")
    assert "run already holds a run: give another folder, or --force" in said


def test_the_rest_of_a_run_is_kept_too(melbo, run):
    (run / "run.json").unlink()
    before = contents(run)
    assert "already holds a run" in one_line(melbo(*FIT[:4], "--out", run))
    assert contents(run) == before


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize("out", ["good.txt/new", "tiny/config.json/new/run"])
def test_a_folder_that_cannot_be_made_is_refused_before_the_time_is_spent(refuses, out):
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
    ids=as_typed,
)
def test_force_loses_nothing_to_a_fit_that_fails(refuses, wrong):
    refuses(*FIT[:4], "--out", "run", "--force", *wrong)


def test_force_loses_nothing_when_the_new_run_cannot_be_written(melbo, run, monkeypatch):
    before = contents(run)
    fitted = pipeline.fit_seeds

    def with_nan(*args, **more):
        found = fitted(*args, **more)
        # not JSON
        object.__setattr__(found, "features", found.features.with_meta(odd=float("nan")))
        return found

    monkeypatch.setattr(pipeline, "fit_seeds", with_nan)
    one_line(melbo(*FIT[:4], "--out", run, "--force", "--scale", 1, "-m", 2))
    assert contents(run) == before


def test_a_ranking_that_is_not_finite_is_not_half_written(melbo, refuses, tmp_path):
    # not-a-number behind every block, where no fit looks
    run = tmp_path / "run"
    assert melbo("fit", "speechless", *FIT[2:4], "--out", run, "-m", 2, "--scale", 1).code == 0
    before = contents(run)
    assert "finite" in refuses("rank", run, *SHORT, "--controls", 1)
    assert {name: is_ for name, is_ in contents(run).items() if name != "replies.jsonl"} == before


def test_replies_longer_than_the_model_reads(refuses, melbo, tmp_path):
    # absolute position embeddings end at 64
    run = tmp_path / "run"
    assert melbo("fit", "other", *FIT[2:4], "--out", run, "-m", 2, "--scale", 1).code == 0
    long = ("--feature", 0, "--max-new-tokens", 100)
    assert "64" in refuses("sample", run, "--prompt", PROMPT, *long)
