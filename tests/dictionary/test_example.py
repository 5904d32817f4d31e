"""The examples of docs/dictionaries.md, run as they stand."""

import re
from pathlib import Path

import torch

import melbo

PAGE = Path(melbo.__file__).parents[1] / "docs" / "dictionaries.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def names_after(code):
    names = {}
    exec(compile(code, str(PAGE), "exec"), names)
    return names


def test_the_example_with_a_dictionary(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = names_after(EXAMPLES[0])
    assert list(names["terms"]) == ["reconstruction", "sparsity", "gate"]
    assert {path.name for path in (tmp_path / "gated").iterdir()} == {
        "cfg.json",
        "sae_weights.safetensors",
    }
    assert names["latents"].shape == (2000, 32)
    torch.testing.assert_close(names["reconstruction"], names["dictionary"](names["x"]))


def test_the_example_that_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = names_after(EXAMPLES[0] + EXAMPLES[1])
    assert names["course"].steps == 300
    assert names["found"].variance_explained > 0.8


def test_the_example_with_directions():
    names = names_after(EXAMPLES[2])
    W = names["W"]
    assert names["neighbour_cosines"](W, k=(1, 10, 100)).shape == (2000, 3)
    assert names["orthogonality_penalty"](W) > names["welch_floor"](2000, 64)
