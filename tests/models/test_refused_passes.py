"""Passes that a model itself gets wrong, refused inside edits."""

import pytest
import torch
from cases import FLOAT32_INSIDE, TINY, WIDTH, padded, tiny_model, tiny_tokenizer
from recurrent import RECURRENT

import melbo
from melbo import Add, LanguageModel, MelboError

_PLAIN = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def made(name):
    dtype = torch.float32 if name in FLOAT32_INSIDE else torch.float64
    if name in TINY:
        return tiny_model(name, dtype)
    return LanguageModel(RECURRENT[name]().to(dtype), tiny_tokenizer(), name=name)


def edited(lm):
    return melbo.edit(lm, Add(1, torch.ones(WIDTH, dtype=lm.dtype)))


@pytest.mark.parametrize("name", ["minimax", "recurrent_gemma", "rwkv"])
@pytest.mark.parametrize("mask_given", [True, False])
def test_padding_that_a_model_reads_is_refused(name, mask_given):
    lm = made(name)
    ids, mask = padded((7, 4), "left")
    more = {"attention_mask": mask.long()} if mask_given else {}
    with edited(lm), pytest.raises(MelboError, match="reads padding that stands before a token"):
        lm.model.generate(ids, **more, **_PLAIN)
    with edited(lm):  # rows of one length
        both = lm.model.generate(ids[:1].repeat(2, 1), use_cache=lm.traits.cache, **_PLAIN)
        alone = lm.model.generate(ids[:1], use_cache=lm.traits.cache, **_PLAIN)
    assert torch.equal(both, alone.expand(2, -1))
    # what stands after the tokens is not read
    right, real = padded((7, 4), "right")
    with edited(lm), torch.no_grad():
        found = lm.model(input_ids=right, attention_mask=real.long(), use_cache=False).logits
        truth = lm.model(input_ids=right[1:, :4], use_cache=False).logits
    assert torch.allclose(found[1, :4], truth[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "mamba", "lfm2", "bamba"])
def test_padding_that_a_model_skips_is_taken(name):
    lm = made(name)
    ids, mask = padded((7, 4), "left")
    with edited(lm):
        both = lm.model.generate(ids, attention_mask=mask.long(), **_PLAIN)
        alone = lm.model.generate(ids[1:, 3:], **_PLAIN)
    assert torch.equal(both[1:, 3:], alone)


def test_a_prompt_in_parts_is_refused_where_the_model_gets_it_wrong():
    lm = made("jamba")
    assert not lm.traits.chunks
    ids, _ = padded((7,))
    says = r"gets a prompt wrong that it reads in parts \(3 tokens on a cache\)"
    with edited(lm), pytest.raises(MelboError, match=says):
        lm.model.generate(ids, prefill_chunk_size=3, **_PLAIN)
    with edited(lm), torch.no_grad():  # a token at a time is right
        out = lm.model(input_ids=ids[:, :4], use_cache=True)
        with pytest.raises(MelboError, match=says):
            lm.model(input_ids=ids[:, 4:], past_key_values=out.past_key_values)
        assert lm.model.generate(ids, **_PLAIN).shape[1] == 10


@torch.no_grad()
def test_several_tokens_on_a_state_are_refused_where_they_would_begin_anew():
    lm = made("mamba")
    ids, _ = padded((7,))
    with edited(lm):
        state = lm.model(input_ids=ids[:, :4], use_cache=True).cache_params
        with pytest.raises(MelboError, match="that it reads in parts"):
            lm.model(input_ids=ids[:, 4:], cache_params=state, use_cache=True)


@pytest.mark.parametrize("name", ["llama", "gemma3", "bamba", "zamba2", "qwen3_next", "lfm2"])
def test_a_prompt_in_parts_is_taken_where_the_model_reads_it_right(name):
    lm = made(name)
    assert lm.traits.chunks
    ids, _ = padded((7,))
    with edited(lm):
        assert torch.equal(
            lm.model.generate(ids, prefill_chunk_size=3, **_PLAIN), lm.model.generate(ids, **_PLAIN)
        )
