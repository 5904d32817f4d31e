import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
import transformers
from cases import TINY, WIDTH, checkpoint, tiny_model, tiny_tokenizer
from safetensors.torch import load_file, save_file

import melbo
from melbo import MelboError, load


@pytest.fixture
def changed(folder, tmp_path):
    """A copy of the checkpoint to spoil."""
    return Path(shutil.copytree(folder, tmp_path / "changed"))


def configure(folder, **more):
    path = Path(folder) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))


# --- folders


def test_a_folder_gives_the_model_that_was_saved(folder):
    lm = load(folder)
    assert (lm.name, lm.depth, lm.width) == (folder, 4, WIDTH)
    assert lm.dtype == torch.float32
    assert load(Path(folder)).name == folder
    assert not lm.model.training
    assert not any(p.requires_grad for p in lm.model.parameters())
    ids = torch.tensor([[1, 20, 30, 40]])
    assert torch.equal(lm.model(ids).logits, tiny_model("llama", torch.float32).model(ids).logits)
    assert lm.tokenizer.chat_template == tiny_tokenizer().chat_template


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16", "float64", torch.bfloat16, torch.float64]
)
def test_dtype(folder, dtype):
    expected = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert load(folder, dtype=dtype).dtype == expected


def test_auto_is_the_dtype_of_the_checkpoint(tmp_path):
    assert load(checkpoint(TINY["llama"]().to(torch.bfloat16), tmp_path)).dtype == torch.bfloat16


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


DAMAGE = {
    "no config": (unlink("config.json"), "no model"),
    "cut config": (cut("config.json", 40), "no model.*not a valid JSON"),
    "type": (lambda folder: configure(folder, model_type="unheard"), "no model.*unheard"),
    "heads": (lambda folder: configure(folder, num_attention_heads=5), "no model"),
    "shape": (lambda folder: configure(folder, intermediate_size=64), r"has shape .*, expected"),
    "encoder-decoder": (other_config(transformers.T5Config(d_model=16, num_layers=2)), "changed"),
    "vision": (other_config(transformers.ViTConfig()), "changed"),
    "no weights": (unlink("model.safetensors"), "cannot load.*no file named model.safetensors"),
    "cut": (cut("model.safetensors", -100), "cannot load"),
    "cut header": (cut("model.safetensors", 60), "cannot load"),
    "empty": (cut("model.safetensors", 0), "cannot load"),
    "tokenizer": (cut("tokenizer.json", 200), "cannot load"),
}


@pytest.mark.parametrize(("spoil", "says"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_and_foreign_checkpoints_say_so_in_one_line(changed, spoil, says):
    spoil(changed)
    with pytest.raises(MelboError, match=says) as err:
        load(str(changed))
    assert "\n" not in str(err.value)


def test_weights_that_are_not_finite_name_the_layer(changed):
    tensors = load_file(changed / "model.safetensors")
    tensors["model.layers.2.self_attn.o_proj.weight"][0, 0] = float("inf")
    save_file(tensors, changed / "model.safetensors", {"format": "pt"})
    says = r"hidden_states\[3\] of the unsteered model is not finite"
    with pytest.raises(MelboError, match=says):
        load(str(changed))


def test_unknown_names(tmp_path):
    says = "expected 'smollm2', a hub id, a local folder with config.json or a .gguf file"
    with pytest.raises(MelboError, match=f"no model .*{says}"):
        load(str(tmp_path))
    with pytest.raises(MelboError, match="no file .*missing.gguf: expected a .gguf file"):
        load(str(tmp_path / "missing.gguf"))
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(MelboError, match="no model .*folder.gguf.*holds no config.json"):
        load(str(tmp_path / "folder.gguf"))


# --- weights are known again


@pytest.mark.parametrize("name", ["llama", "llama_tied", "gpt2"])
def test_saved_and_loaded_weights_have_the_same_fingerprint(tmp_path, name):
    model = TINY[name]()
    before = melbo.LanguageModel(model, tiny_tokenizer()).fingerprint
    folder = checkpoint(model, tmp_path / "one")
    assert load(folder).fingerprint == before
    assert load(folder, dtype="bfloat16").fingerprint == before
    again = checkpoint(load(folder).model, tmp_path / "two")
    assert load(again).fingerprint == before
    with torch.no_grad():
        model.get_input_embeddings().weight[0, 0] += 1
    assert load(checkpoint(model, tmp_path / "three")).fingerprint != before


# --- memory


@pytest.mark.parametrize("name", ["llama", "llama_tied"])
def test_memory_is_estimated_to_the_byte_before_anything_is_read(tmp_path, monkeypatch, name):
    folder = checkpoint(TINY[name](), tmp_path)
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
    says = (
        "needs 0.0 GiB for its weights in float32, 0.0 GiB are free: use a smaller dtype, another"
    )
    with pytest.raises(MelboError, match=f"{says} device or"):
        load(folder, device="cpu")
    room(need // 2 - 1)
    with pytest.raises(MelboError, match="weights in bfloat16"):
        load(folder, dtype="bfloat16", device="cpu")


def test_a_device_map_is_trusted_with_the_memory(folder, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1, total=1))
    assert load(folder, device_map="cpu").depth == 4


# --- code of strangers


EVIL = """from pathlib import Path
Path({!r}).write_text('executed')
from transformers import LlamaConfig as C, LlamaForCausalLM as M
"""


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

    for kind in ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"):
        watch(getattr(transformers, kind))
    load(folder)
    assert True not in seen
    assert seen.count(False) >= 3
    seen.clear()
    load(folder, trust_remote_code=True)
    assert False not in seen
    assert seen.count(True) >= 3
