"""`melbo compare`: recipes beside controls."""

import re

import pytest
from command_line import PROMPT, SHORT, as_typed, one_line

COMPARE = ("compare", "tiny", "--prompt", PROMPT)


def test_compare_writes_table_and_picture(melbo, tmp_path):
    out = tmp_path / "new"
    counts = ("-m", 2, "--seeds", 1, "--times", 1, "--steps", 2)
    argv = (*COMPARE, "--out", out, "--scale", 2, *counts, *SHORT)
    ended = melbo(*argv, "--recipe", "linear", "--recipe", "random")
    assert ended.code == 0
    assert all(name in ended.out for name in ("linear +", "linear −", "random +", "compare.png"))
    names = sorted(p.name for p in out.iterdir())
    assert names == ["compare.json", "compare.md", "compare.png", "completions.jsonl"]
    assert "already holds" in one_line(melbo(*argv))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--recipe", "best"), "'best' is not one of"),
        (("--times", -1), "one positive norm or more"),
        (("--held-out", "same.txt"), "one of the map's"),
        (("--concatenate",), "concatenated map"),
        (("--source", 9), "source is 9"),
    ],
    ids=as_typed,
)
def test_comparisons_that_cannot_be_made(refuses, options, says):
    assert re.search(says, refuses(*COMPARE, "--scale", 1, "--out", "new", *options))
