"""The command line in tests: called in this process, or as its users call it in one of its own."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import transformers
from cases import TINY, tiny_tokenizer
from safetensors.torch import load_file, save_file

from melbo import cli

SCRIPT = Path(sys.executable).parent / "melbo"
PROMPT = "Tell me how to bake a cake"
FIT = ("fit", "tiny", "--prompt", PROMPT, "--out", "new", "-m", "3")
SHORT = ("--max-new-tokens", "3")
WHOLE = ["completions.jsonl", "features.safetensors", "ranking.json", "report.html", "run.json"]
DAMAGED = (
    "hollow",
    "unweighted",
    "cut",
    "mismatched",
    "infinite",
    "speechless",
    "absurd",
    "translator",
    "mute",
)


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def rows(self):
        """JSON of each line of the output."""
        return [strict(line) for line in self.out.split("\n") if line]


def environment():
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def joined(text):
    """Lines of a command put together, as a shell reads them."""
    return text.replace(" \\\n    ", " ")


def without_bars(err):
    """Standard error as one sees it in the end: bars of a slow machine are gone by then."""
    return re.sub(r"[^\n]*\r", "", err)


def real(*argv, stdin="", cwd=None):
    """The installed console script in a process of its own."""
    done = subprocess.run(
        [SCRIPT, *map(str, argv)],
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        env=environment(),
        cwd=cwd,
        timeout=120,
    )
    return Ended(done.returncode, done.stdout, without_bars(done.stderr))


@pytest.fixture
def melbo(home, monkeypatch, capfd):
    """The entry point of the console script in this process, run in ``home``.

    It takes the commands of another group too, those of ``python -m research`` say.
    """
    monkeypatch.chdir(home)

    def call(*argv, stdin="", group=cli.cli):
        monkeypatch.setattr(sys, "argv", ["melbo", *map(str, argv)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main(group)
        said = capfd.readouterr()
        return Ended(end.value.code, said.out, without_bars(said.err))

    return call


@pytest.fixture
def refuses(home, melbo):
    """Bad input: exit code 2, one line on standard error, nothing written and nothing lost."""

    def call(*argv, **more):
        before = contents(home)
        ended = melbo(*argv, **more)
        assert contents(home) == before
        return one_line(ended)

    yield call
    shutil.rmtree(home / "new", ignore_errors=True)  # left behind by a failing test


def one_line(ended):
    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.startswith("error: ")
    assert ended.err.endswith("\n")
    assert len(ended.err.splitlines()) == 1
    assert "Traceback" not in ended.err
    return ended.err


def contents(folder):
    """Every file below ``folder``, byte for byte, and every folder."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in Path(folder).rglob("*")
    }


def as_typed(value):
    """A command line as the name of a test."""
    return ascii(" ".join(map(str, value)))[1:50] if isinstance(value, tuple) else ""


def strict(text):
    """JSON without the NaN and Infinity that only Python reads."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def put(name, folder):
    """A tiny model and its tokenizer as a checkpoint."""
    TINY[name]().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def damage_checkpoints(home):
    """Copies of the checkpoint ``tiny``, each with a fault of its own."""
    for name in DAMAGED:
        shutil.copytree(home / "tiny", home / name)
    (home / "hollow" / "config.json").unlink()
    (home / "unweighted" / "model.safetensors").unlink()
    weights = home / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    config = home / "mismatched" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "intermediate_size": 64}))
    for name, where in (
        ("infinite", "model.layers.1.mlp.down_proj.weight"),
        ("speechless", "lm_head.weight"),
    ):
        tensors = load_file(home / "tiny" / "model.safetensors")
        tensors[where][3, 4] = float("nan")
        save_file(tensors, home / name / "model.safetensors", {"format": "pt"})
    huge = {"hidden_size": 65536, "intermediate_size": 262144}
    heads = {"num_hidden_layers": 200, "num_attention_heads": 64}
    transformers.LlamaConfig(**huge, **heads).save_pretrained(home / "absurd")
    transformers.T5Config(d_model=16, num_layers=2).save_pretrained(home / "translator")
    (home / "mute" / "chat_template.jinja").unlink()


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A folder of checkpoints and prompt files, good and bad, and one ranked run.

    It is made once for all tests: they write elsewhere, or remove what they have written.
    """
    home = tmp_path_factory.mktemp("home")
    put("llama", home / "tiny")
    put("gpt2", home / "other")
    damage_checkpoints(home)
    (home / "good.txt").write_text("he or she\n\n  \nred or blue ?\n", encoding="utf-8")
    (home / "empty.txt").write_text("\n \n")
    (home / "latin.txt").write_bytes("café\n".encode("latin-1"))
    (home / "same.txt").write_text(PROMPT + "\n")
    (home / "broken.gguf").write_bytes(b"GGUFxxxxx")

    fitted = real(*FIT[:4], "--out", "run", "-m", 4, "--json", cwd=home)
    assert fitted.code == 0, fitted.err
    (home / "fit.json").write_text(fitted.out)
    ranked = real("rank", "run", "--max-new-tokens", 4, "--controls", 2, "--json", cwd=home)
    assert ranked.code == 0, ranked.err
    (home / "rank.json").write_text(ranked.out)
    return home


@pytest.fixture
def run(home, tmp_path):
    """A copy of the ranked run, for a test to change."""
    return Path(shutil.copytree(home / "run", tmp_path / "run"))
