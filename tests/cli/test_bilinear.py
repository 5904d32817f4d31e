"""`melbo bilinear`: what weights tell of a steering vector."""

import re

import pytest
from command_line import as_typed

PAIR = ("--positive", "you is red", "--negative", "he was one blue")
TRACE = ("bilinear", "trace", "tiny")


def test_a_trace_is_a_table(melbo):
    ended = melbo(*TRACE, *PAIR, "--layer", 1, "--scale", 2, "--scale", 0.5)
    assert (ended.code, ended.err) == (0, "")
    assert "contrast vector at layer 1: norm" in ended.out
    # the α nearest 1, and all of them in order
    assert "α = 0.5: cosine / relative error of each prediction" in ended.out
    blocks, *medians = ended.out.split("median over these blocks")
    assert re.findall(r"^ +(\d)  ", blocks, re.MULTILINE) == ["1", "2", "3"] * 2
    for each in medians:
        assert re.findall(r"^ *(0\.5|2)  ", each, re.MULTILINE) == ["0.5", "2"]


def test_a_trace_as_json_and_as_a_picture(melbo, tmp_path):
    picture = tmp_path / "trace.png"
    ended = melbo(*TRACE, *PAIR, "--picture", picture, "--json")
    assert ended.code == 0
    (row,) = ended.rows
    assert row["layer"] == 1
    assert [block["block"] for block in row["blocks"]] == [1, 2, 3]
    responses = row["blocks"][0]["responses"]
    assert [r["alpha"] for r in responses] == [0.25, 0.5, 1, 2, 4]
    assert all(r["cross"] + r["self"] == pytest.approx(1) for r in responses)
    assert set(responses[0]["agreement"]) == {
        "weights",
        "first order",
        "tangent gate",
        "second order",
    }
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        ("tiny", PAIR[:2], "Missing option '--negative'"),
        ("tiny", (*PAIR, "--scale", 0), "got the scales 0: expected finite numbers other than 0"),
        ("tiny", (*PAIR, "--scale", "nan"), "got the scales nan"),
        ("tiny", (*PAIR, "--layer", 4), "no block reads layer 4"),
        ("tiny", (*PAIR, "--layer", 9), "layer is 9, but tiny has 4 blocks"),
        ("tiny", ("--positive", "he", "--negative", "he"), "are the same text"),
        ("tiny", ("--positive", "he", "--negative", " "), "prompt 1 is blank"),
        (
            "tiny",
            ("--positive", "you red", "--negative", "he red", "--layer", 0),
            "no contrast vector: give texts that end differently",
        ),
        ("other", PAIR, "block 1 of other has no gated MLP with gate_proj"),
        ("nowhere", PAIR, "nowhere"),
    ],
    ids=as_typed,
)
def test_traces_that_cannot_be_made(refuses, model, options, says):
    assert re.search(says, refuses("bilinear", "trace", model, *options, "--picture", "new.png"))


def test_a_group_shows_its_commands(melbo):
    ended = melbo("bilinear", "--help")
    assert ended.code == 0
    assert re.search(r"^  trace  ", ended.out, re.MULTILINE)
    options = melbo("bilinear", "trace", "--help").out
    for option in ("--positive", "--negative", "--layer", "--scale", "--picture", "--json"):
        assert option in options
