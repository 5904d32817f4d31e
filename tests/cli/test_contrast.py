"""`melbo contrast`: the supervised baselines."""

import json
import re

import pytest
from command_line import SHORT, as_typed, one_line

from melbo import FeatureSet

PAIR = ("--plus", "yes", "--minus", "no")


@pytest.mark.parametrize(
    ("method", "layers"), [("actadd", ()), ("sara", ("--layer", 1, "--layer", 2))]
)
def test_a_pair_of_prompts_is_sampled_and_talked_to(melbo, tmp_path, method, layers):
    run = tmp_path / "run"
    pair = ("--plus", "yes and yes", "--minus", "no", "--coefficient", 2)
    made = melbo("contrast", "tiny", "--method", method, *pair, *layers, "--out", run)
    assert made.code == 0
    assert f"{method}: layer 1" in made.out
    sample = ("sample", run, "--prompt", "dog", *SHORT, "--json")
    said = [row["text"] for row in melbo(*sample).rows]
    off = [row["text"] for row in melbo(*sample, "--strength", 0).rows]
    assert len(said) == 2
    assert off == [said[0], said[0]]
    talk = melbo("chat", run, "--feature", 0, *SHORT, stdin="dog\n/quit\n")
    assert talk.code == 0
    assert said[1].strip() in talk.out


def test_caa_from_a_file_of_pairs_is_a_run_like_any_other(melbo, tmp_path):
    pairs, run = tmp_path / "pairs.tsv", tmp_path / "run"
    pairs.write_text("yes she was red\tno he was blue\nit is a dog\twe and cat\n")
    told = ("--method", "caa", "--pairs", pairs, "--layer", 1)
    made = melbo("contrast", "tiny", *told, "--out", run)
    assert made.code == 0
    assert "caa: norm" in made.out
    assert len(FeatureSet.load(run)) == 1
    assert melbo("rank", run, *SHORT, "--controls", 1).code == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--method", "caa"), "caa takes --pairs FILE"),
        (("--method", "caa", "--pairs", "good.txt"), "line 1 of good.txt holds 1 texts"),
        (("--method", "caa", "--pairs", "nowhere.tsv"), "cannot read nowhere.tsv"),
        (("--method", "actadd", "--plus", "yes"), "--plus TEXT --minus TEXT"),
        (("--method", "actadd", *PAIR, "--pairs", "good.txt"), "takes nothing of the other"),
        (
            ("--method", "sara", *PAIR, "--layer", 1, "--layer", -4),
            "got the layers 1, -4: expected",
        ),
        (("--method", "sara", *PAIR, "--layer", 9), "layer is 9"),
        (("--method", "actadd", *PAIR, "--layer", 4), "no block reads layer 4"),
        (("--method", "actadd", *PAIR, "--truncation", 2), "--truncation to sara"),
        (("--method", "sara", *PAIR, "--target", 3), "--target belongs to caa"),
        (("--method", "actadd", *PAIR, "--coefficient", "nan"), "strength is nan"),
    ],
    ids=as_typed,
)
def test_contrasts_that_cannot_be_made(refuses, options, says):
    assert re.search(says, refuses("contrast", "tiny", *options, "--out", "new"))


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        ("yes\tno\nred\n", (), "line 2 of .*pairs.tsv holds 1 texts: expected two with a tab"),
        ("yes\tno\n", ("--layer", 1, "--layer", 2), "caa adds one vector at one layer"),
    ],
    ids=["uneven", "two layers"],
)
def test_pairs_that_cannot_be_used(refuses, tmp_path, content, options, says):
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text(content)
    told = ("--method", "caa", "--pairs", pairs, *options)
    assert re.search(says, refuses("contrast", "tiny", *told, "--out", "new"))


def test_a_contrast_of_another_model(melbo, tmp_path):
    run = tmp_path / "run"
    assert melbo("contrast", "tiny", "--method", "sara", *PAIR, "--out", run).code == 0
    for command in (("sample", run, "--prompt", "dog"), ("chat", run)):
        said = one_line(melbo(*command, "--model", "other"))
        assert re.search("fitted on tiny .*this is other .*", said)
    for command in ("rank", "report"):
        assert "kind 'contrast', expected 'features'" in one_line(melbo(command, run))
    saved = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**saved, "contrast": {"method": "sara"}}))
    assert "make it again" in one_line(melbo("chat", run))
