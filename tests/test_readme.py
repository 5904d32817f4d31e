"""Python in the README: it runs as it stands, on a tiny model and with a small budget."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from scripted import TEXTS, Script, speaker

import melbo

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)


def load(name):
    """A tiny model in the place of the bundled one, or of a folder of this repository."""
    assert name == "smollm2" or (README.parent / name).is_dir(), f"there is no {name}"
    lm = speaker()
    if name == "smollm2":
        with torch.no_grad():
            # a base differs from what was tuned from it
            lm.model.lm_head.weight += 0.1
    return lm


def built_in(lm, read=None):
    """Prompts of words that the tiny model knows."""
    return melbo.Parts.split((read or partial(melbo.Prompts.chat, lm))(TEXTS))


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Everything is written to a folder of the test, and takes seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(melbo, "load", load)
    monkeypatch.setattr(melbo.Parts, "built_in", built_in)
    settings = {"budget": 40_000, "max_new_tokens": 10, "elicitors": [Script()]}
    monkeypatch.setattr(melbo, "Audit", partial(melbo.Audit, **settings))


def test_there_is_python_in_the_readme():
    assert BLOCKS


def test_python_in_the_readme_runs_block_after_block(small, capsys):
    names = {}
    for block in BLOCKS:
        exec(compile(block, str(README), "exec"), names)
    # the words that were planted are among what is printed or left in a variable
    told = capsys.readouterr().out + str([v for v in names.values() if isinstance(v, dict)])
    assert "red" in told
