"""Trials on load: blocks that replay, causality, caches, padding."""

import math

import pytest
import torch
import transformers as tf
from cases import TINY, VOCAB, WIDTH, tiny_model, tiny_tokenizer
from streams import random, shared
from torch import nn

from melbo import Add, LanguageModel, MelboError
from melbo.models.decoding.decode import decode
from melbo.models.trial import Traits, replay_error
from research.tiny.vision import VISION

_SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "pad_token_id": 0,
}


def strong(model):
    """The same model, with weights far enough from zero for everything to matter."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    return model.double()


@pytest.mark.parametrize("name", sorted(set(VISION) - {"paligemma"}))
def test_the_text_blocks_are_taken_where_a_vision_tower_has_as_many(name):
    model = VISION[name]().double()
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


@pytest.mark.parametrize("kind", ["Bart", "MBart", "Blenderbot", "Pegasus", "Marian"])
@pytest.mark.parametrize("layers", [(2, 3), (3, 2)])
def test_a_decoder_is_as_deep_as_itself_and_not_as_its_encoder(kind, layers):
    """The configuration's own number of layers is the encoder's; transformers' cache goes by it."""
    sides = {}
    for side, n in zip(("encoder", "decoder"), layers, strict=True):
        sides |= {f"{side}_layers": n, f"{side}_attention_heads": 4, f"{side}_ffn_dim": 48}
    config = getattr(tf, f"{kind}Config")(
        vocab_size=VOCAB,
        d_model=WIDTH,
        max_position_embeddings=64,
        pad_token_id=0,
        decoder_start_token_id=0,
        is_decoder=True,
        is_encoder_decoder=False,
        **sides,
    )
    lm = LanguageModel(
        strong(tf.AutoModelForCausalLM.from_config(config)), tiny_tokenizer(), name=kind
    )
    assert lm.depth == layers[1]
    assert lm.traits.cache == (layers[1] <= layers[0])
    v = 3 * random(WIDTH, seed=3, dtype=torch.float64)
    ids, want = torch.tensor([[1, 20, 30, 40]]), []

    def push(block, args):
        return (args[0] + v, *args[1:])

    with lm.blocks[1].register_forward_pre_hook(push), torch.no_grad():
        for _ in range(3):
            want.append(lm.model(input_ids=ids, use_cache=False).logits[0, -1].argmax().item())
            ids = torch.cat([ids, torch.tensor([want[-1:]])], 1)
    lm.model.generation_config.eos_token_id = []
    assert decode(lm, [(1, 20, 30, 40)], Add(1, v), 3, progress=False) == [want]


def test_a_model_that_fails_by_itself_is_not_blamed_on_its_blocks():
    config = tf.XGLMConfig(
        vocab_size=VOCAB,
        d_model=WIDTH,
        ffn_dim=48,
        num_layers=3,
        attention_heads=4,
        max_position_embeddings=64,
    )
    model = tf.AutoModelForCausalLM.from_config(config)
    assert LanguageModel(model, tiny_tokenizer()).depth == 3
    says = r"XGLMForCausalLM itself fails in float64 \(RuntimeError: .*\): load it in float32"
    with pytest.raises(MelboError, match=says):
        LanguageModel(model.double(), tiny_tokenizer())
    broken = TINY["llama"]()
    broken.lm_head.weight = nn.Parameter(torch.zeros(VOCAB, WIDTH + 1))
    broken.model.layers[0].mlp.up_proj.weight = nn.Parameter(torch.zeros(48, WIDTH + 1))
    with pytest.raises(MelboError, match=r"LlamaForCausalLM itself fails in float32 \(Runtime"):
        LanguageModel(broken, tiny_tokenizer())
