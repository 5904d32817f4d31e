"""Trials on load: blocks that replay, causality, caches, padding."""

import math

import pytest
import torch
import transformers as tf
from cases import TINY, VOCAB, WIDTH, tiny_model, tiny_tokenizer
from streams import shared
from torch import nn

from melbo import LanguageModel, MelboError
from melbo.models.trial import Traits, replay_error

_SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "pad_token_id": 0,
}
_TEXT = _SHAPE | {"num_key_value_heads": 2, "max_position_embeddings": 64}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
_SIGHT = {
    "llava": lambda: tf.LlavaConfig(
        text_config=_TEXT | {"model_type": "llama"},
        vision_config=_VISION | {"model_type": "clip_vision_model"},
        image_token_id=63,
    ),
    "internvl": lambda: tf.InternVLConfig(
        text_config=_TEXT | {"model_type": "qwen2"},
        vision_config=_VISION | {"image_size": [16, 16], "patch_size": [8, 8]},
        image_token_id=63,
    ),
    "gemma3": lambda: tf.Gemma3Config(
        text_config=_TEXT | {"head_dim": 8, "sliding_window": 4},
        vision_config=_VISION,
        image_token_index=63,
        mm_tokens_per_image=4,
    ),
    "idefics3": lambda: tf.Idefics3Config(
        text_config=_TEXT | {"model_type": "llama"}, vision_config=_VISION, image_token_id=63
    ),
}


def strong(model):
    """The same model, with weights far enough from zero for everything to matter."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    return model.double()


@pytest.mark.parametrize("name", _SIGHT)
def test_the_text_blocks_are_taken_where_a_vision_tower_has_as_many(name):
    model = strong(tf.AutoModelForImageTextToText.from_config(_SIGHT[name]()))
    lm = LanguageModel(model, tiny_tokenizer())
    text = model.model.language_model if name != "idefics3" else model.model.text_model
    assert lm.blocks is text.layers
    ids = torch.arange(1, 8)[None]
    out = lm.model(input_ids=ids, output_hidden_states=True)
    assert torch.allclose(lm.activations(ids[0].tolist(), 2), out.hidden_states[2][0], atol=1e-10)


def test_lists_that_do_not_replay_are_all_named():
    model = TINY["llama"]()
    model.model.decoys = nn.ModuleList(nn.Identity() for _ in model.model.layers)
    model.model.layers[1].register_forward_hook(lambda block, args, out: out * torch.rand(()))
    says = "cannot be sliced at any of model.layers, model.decoys: pass blocks="
    with pytest.raises(MelboError, match=says):
        LanguageModel(model, None)


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "Electra", "BigBird"])
@pytest.mark.parametrize("decoder", [False, True])
def test_a_model_that_is_not_causal_is_refused(kind, decoder):
    config = getattr(tf, f"{kind}Config")(**_SHAPE, is_decoder=decoder)
    model = strong(tf.AutoModelForCausalLM.from_config(config))
    if decoder:
        assert LanguageModel(model, None).depth == 3
        return
    with pytest.raises(MelboError, match=r"ForCausalLM|LMHeadModel") as err:
        LanguageModel(model, None)
    assert "is not causal: another last token changes the states of earlier ones" in str(err.value)
    assert "\n" not in str(err.value)


def test_a_prefix_that_is_read_both_ways_is_not_causal():
    config = tf.PaliGemmaConfig(
        text_config=_TEXT | {"model_type": "gemma", "head_dim": 8},
        vision_config=_VISION | {"model_type": "siglip_vision_model"},
        image_token_index=63,
        projection_dim=WIDTH,
    )
    model = strong(tf.AutoModelForImageTextToText.from_config(config))
    with pytest.raises(MelboError, match="PaliGemmaForConditionalGeneration is not causal"):
        LanguageModel(model, None)


def test_a_replay_that_is_not_a_number_is_an_error():
    lm, calls = tiny_model("llama"), []

    def spoil(block, args, out):
        calls.append(1)
        return out if len(calls) == 1 else out * math.nan

    # the first block alone; what comes after it would be nan too, and max() forgets nan
    with lm.blocks[3].register_forward_hook(spoil):
        assert math.isnan(replay_error(lm))


def test_traits_of_clean_models_and_of_one_whose_cache_is_wrong():
    for name in ("llama", "gpt2", "mistral", "opt"):
        assert shared(name).traits == Traits(True, True, True)
    model = TINY["llama"]().double()

    def forget(module, args, kwargs):
        if kwargs.get("past_key_values") is not None and args[0].shape[1] == 1:
            return (args[0] * 1.5, *args[1:]), kwargs
        return None

    model.model.layers[0].register_forward_pre_hook(forget, with_kwargs=True)
    lm = LanguageModel(model, tiny_tokenizer())
    assert not lm.traits.cache
    assert not lm.traits.resumes
