"""Parts of GGUF files and files that were cut short are refused, and never kept."""

import re

import gguf
import numpy as np
import pytest
from cases import TINY

from melbo import MelboError, load
from melbo.models.loading.gguf import cache_folder
from melbo.models.loading.gguf_header import Header


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MELBO_CACHE", str(tmp_path / "cache"))


def written(path, split=0, **more):
    """A GGUF file of a tiny llama with its own words; ``split`` tensors in each part."""
    out = gguf.GGUFWriter(str(path), "llama", split_max_tensors=split)
    out.add_context_length(64)
    out.add_embedding_length(32)
    out.add_block_count(4)
    out.add_feed_forward_length(48)
    out.add_head_count(4)
    out.add_head_count_kv(2)
    out.add_layer_norm_rms_eps(1e-6)
    out.add_vocab_size(96)
    out.add_tokenizer_model("llama")
    out.add_token_list(["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(93))])
    out.add_token_scores([0.0] * 96)
    out.add_token_types([2, 3, 3, *[1] * 93])
    for key, value in more.items():
        out.add_uint16(key.replace("__", "."), value)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers.": "blk.",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for name, p in TINY["llama"]().named_parameters():
        for old, new in names.items():
            name = name.replace(old, new)
        out.add_tensor(name, p.detach().numpy().astype(np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def test_a_whole_file_is_loaded_whatever_the_case_of_its_name(tmp_path):
    path = written(tmp_path / "m.gguf")
    assert Header.of(path) == Header(0, 1, 39, 0)
    lower = load(str(path))
    path.rename(tmp_path / "M.GGUF")
    upper = load(str(tmp_path / "M.GGUF"))
    assert lower.depth == upper.depth == 4
    assert lower.fingerprint == upper.fingerprint


@pytest.mark.parametrize("part", [1, 2, 3])
def test_a_part_of_a_split_file_says_how_to_merge(tmp_path, part):
    written(tmp_path / "m.gguf", split=15)
    path = tmp_path / f"m-0000{part}-of-00003.gguf"
    says = (
        f"{path.name} is part {part} of 3 of a split model (m-00001-of-00003.gguf to "
        "m-00003-of-00003.gguf): merge them first, llama-gguf-split --merge "
        "m-00001-of-00003.gguf m.gguf, and load m.gguf"
    )
    with pytest.raises(MelboError, match=re.escape(says)):
        load(str(path))
    assert not cache_folder().exists()


def test_a_part_under_another_name_is_known_by_what_it_says_of_itself(tmp_path):
    written(tmp_path / "m.gguf", split=20)
    path = (tmp_path / "m-00001-of-00002.gguf").rename(tmp_path / "model.gguf")
    with pytest.raises(MelboError, match=r"part 1 of 2.*--merge model.gguf whole-model.gguf"):
        load(str(path))


def test_fewer_tensors_than_the_file_says(tmp_path):
    path = written(tmp_path / "m.gguf", split__tensors__count=50)
    with pytest.raises(MelboError, match="m.gguf holds 39 tensors of 50"):
        load(str(path))
    assert not cache_folder().exists()


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5, 0.99])
def test_a_file_that_was_cut_short_is_refused(tmp_path, share):
    path = written(tmp_path / "m.gguf")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(MelboError, match="cannot read .*cut short") as err:
        load(str(path))
    assert "\n" not in str(err.value)
    assert not cache_folder().exists()


def test_a_file_without_some_of_its_tensors_is_refused_and_not_kept(tmp_path, monkeypatch):
    add = gguf.GGUFWriter.add_tensor

    def some(writer, name, *more):
        if name != "blk.2.ffn_up.weight":
            add(writer, name, *more)

    monkeypatch.setattr(gguf.GGUFWriter, "add_tensor", some)
    path = written(tmp_path / "m.gguf")
    with pytest.raises(MelboError, match=r"it lacks model.layers.2.mlp.up_proj.weight"):
        load(str(path))
    assert list(cache_folder().iterdir()) == []
