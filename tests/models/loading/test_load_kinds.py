"""Models of pictures and text, and weights quantised on loading."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
import transformers as tf
from cases import TINY, checkpoint, tiny_tokenizer

from melbo import MelboError, ablate, load

_IDS = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_TEXT = _IDS | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_SEES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def _internvl():
    sees = _SEES | {"image_size": [16, 16], "patch_size": [8, 8]}
    text = _TEXT | {"model_type": "qwen2"}
    return tf.InternVLConfig(text_config=text, vision_config=sees, image_token_id=63)


def _llava():
    sees = _SEES | {"image_size": 16, "patch_size": 8, "model_type": "clip_vision_model"}
    text = _TEXT | {"model_type": "llama"}
    return tf.LlavaConfig(text_config=text, vision_config=sees, image_token_index=63)


def _gemma3():
    sees = _SEES | {"image_size": 16, "patch_size": 8}
    text = _TEXT | {"head_dim": 8, "query_pre_attn_scalar": 8}
    return tf.Gemma3Config(
        text_config=text, vision_config=sees, mm_tokens_per_image=4, image_token_index=63
    )


SEEING = {"internvl": _internvl, "llava": _llava, "gemma3": _gemma3}


@pytest.fixture(params=SEEING)
def seeing(request, tmp_path):
    """A model of pictures and text in memory, and its folder."""
    torch.manual_seed(0)
    model = tf.AutoModelForImageTextToText.from_config(SEEING[request.param]()).eval()
    return model, checkpoint(model, tmp_path / "seeing")


@torch.no_grad()
def test_the_text_of_a_model_that_sees_is_used(seeing):
    model, folder = seeing
    lm = load(folder)
    assert (lm.depth, lm.width) == (3, 32)
    assert type(lm.model) is type(model)
    ids = torch.tensor([[5, 9, 17, 23]])
    expected = model(input_ids=ids, output_hidden_states=True)
    assert torch.equal(lm.model(input_ids=ids).logits, expected.logits)
    assert torch.allclose(lm.activations([5, 9, 17, 23], 2), expected.hidden_states[2][0])


def test_an_ablated_model_that_sees_is_saved_whole(seeing, tmp_path):
    model, folder = seeing
    lm = load(folder)
    with ablate(lm, torch.eye(32)[3]):
        lm.model.save_pretrained(tmp_path / "ablated")
    tiny_tokenizer().save_pretrained(tmp_path / "ablated")
    again = load(str(tmp_path / "ablated"))
    assert again.fingerprint != lm.fingerprint
    assert {n for n, _ in again.model.named_parameters()} == {
        n for n, _ in model.named_parameters()
    }


def test_a_processor_is_kept_where_there_is_one(seeing, monkeypatch):
    _, folder = seeing
    assert load(folder).processor is None
    processor = SimpleNamespace()
    monkeypatch.setattr(tf.AutoProcessor, "from_pretrained", lambda *a, **k: processor)
    assert load(folder).processor is processor


def test_a_model_of_text_has_no_processor(folder):
    assert load(folder).processor is None


# --- bits


@pytest.mark.parametrize("bits", [0, 2, 16, "4"])
def test_other_numbers_of_bits_are_refused(folder, bits):
    with pytest.raises(MelboError, match="expected 4, 8 or None"):
        load(folder, bits=bits)


@pytest.mark.parametrize("bits", [4, 8])
def test_bits_without_bitsandbytes_say_the_pip_command(folder, bits, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *m: None if n == "bitsandbytes" else real(n, *m)
    )
    with pytest.raises(MelboError, match=f"weights of {bits} bits need .*pip install bitsandbytes"):
        load(folder, bits=bits)


@pytest.mark.parametrize(("bits", "flag"), [(4, "load_in_4bit"), (8, "load_in_8bit")])
def test_bits_are_handed_to_transformers(folder, bits, flag, monkeypatch):
    seen = {}
    monkeypatch.setattr(importlib.util, "find_spec", lambda *a: SimpleNamespace())
    monkeypatch.setattr(tf, "AutoModelForCausalLM", tf.AutoModelForCausalLM)
    real = tf.AutoModelForCausalLM.from_pretrained

    def watch(*args, quantization_config=None, **more):
        seen.update(how=quantization_config, place=more.pop("device_map"))
        return real(*args, **more)

    monkeypatch.setattr(tf.AutoModelForCausalLM, "from_pretrained", watch)
    monkeypatch.setattr("melbo.models.loading.load.BitsAndBytesConfig", lambda **how: how)
    lm = load(folder, bits=bits, device="cpu")
    assert lm.depth == 4
    # a run is loaded again from this
    assert lm.describe()["bits"] == bits
    assert lm.describe()["dtype"] == "float32"
    assert seen["how"].get("bnb_4bit_compute_dtype", torch.float32) is torch.float32
    assert seen["how"][flag] is True
    assert seen["place"] == {"": torch.device("cpu")}


def test_what_is_quantised_already_is_not_quantised_again(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda *a: SimpleNamespace())
    model = TINY["llama"]()
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    model.config.save_pretrained(tmp_path)
    with pytest.raises(MelboError, match="quantised already"):
        load(str(tmp_path), bits=4)
