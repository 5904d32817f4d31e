import pytest
import torch
import transformers as tf
from cases import TINY, VOCAB, WIDTH, build, padded
from streams import assert_close, hooks, shared, streams
from torch import nn

from melbo import LanguageModel, MelboError

# --- refusals


def test_non_finite_weights_are_named_on_construction():
    model = TINY["llama"]()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0] = torch.nan
    with pytest.raises(MelboError, match=r"hidden_states\[2\] .* not finite in float32"):
        LanguageModel(model, None)


def one_line(err):
    return "\n" not in str(err.value)


@pytest.mark.parametrize("blocks", [None, "encoder.block", "decoder.block"])
def test_an_encoder_decoder_is_refused_in_one_line(blocks):
    config = tf.T5Config(
        vocab_size=VOCAB,
        d_model=WIDTH,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    )
    with pytest.raises(MelboError, match="T5ForConditionalGeneration is an encoder-decoder") as err:
        LanguageModel(tf.T5ForConditionalGeneration(config), None, blocks=blocks)
    assert one_line(err)


def test_blocks_that_are_not_in_a_list_are_refused_with_the_argument_to_pass():
    model = TINY["llama"]()
    model.model.layers = nn.Sequential(*model.model.layers)
    says = "found no decoder blocks in LlamaForCausalLM: pass blocks="
    with pytest.raises(MelboError, match=says) as err:
        LanguageModel(model, None)
    assert one_line(err)


def test_blocks_that_do_not_replay_are_refused():
    model, calls = TINY["llama"](), []

    def drift(block, args, out):
        calls.append(block)
        return out * len(calls)

    model.model.layers[1].register_forward_hook(drift)
    says = "cannot be sliced: replayed blocks differ from its hidden states by .*blocks="
    with pytest.raises(MelboError, match=f"LlamaForCausalLM {says}") as err:
        LanguageModel(model, None)
    assert one_line(err)


@pytest.mark.parametrize("path", ["no.such", "model.norm", "model.layers.0", ""])
def test_a_path_without_blocks_is_refused(path):
    with pytest.raises(MelboError, match=r"no list of blocks at .*expected a ModuleList") as err:
        LanguageModel(TINY["llama"](), None, blocks=path)
    assert one_line(err)


def test_of_several_lists_the_one_that_replays_is_taken():
    model = TINY["llama"]().double()
    layers = model.model._modules.pop("layers")
    model.model.decoys = nn.ModuleList(nn.Identity() for _ in layers)
    model.model.layers = layers
    with pytest.raises(MelboError, match=r"cannot be sliced.*blocks=") as err:
        LanguageModel(model, None, blocks="model.decoys")
    assert one_line(err)
    assert LanguageModel(model, None).blocks is layers
    lm = LanguageModel(model, None, blocks="model.layers")
    assert lm.blocks is layers
    assert not hooks(lm)
    ids, real = padded((9, 6))
    assert_close(lm.capture(ids, real, 1, 3).output[real], streams(lm, ids, real)[3][real], 1e-10)


# --- layers


def test_layers_count_from_both_ends_and_stay_in_range():
    lm = shared("llama")
    assert lm.depth == 4
    assert [lm.layer(i) for i in range(5)] == [0, 1, 2, 3, 4]
    assert [lm.layer(i) for i in range(-5, 0)] == [0, 1, 2, 3, 4]
    for index in (5, -6):
        says = f"target is {index}, but llama has 4 blocks: expected 0 to 4"
        with pytest.raises(MelboError, match=says):
            lm.layer(index, "target")


# --- fingerprint


def test_fingerprint_survives_a_cast_and_notices_a_weight():
    model = TINY["llama"]()
    # digits of float32 beyond bfloat16 are lost on the way
    marks = [
        LanguageModel(model.to(dtype), None).fingerprint
        for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.float32)
    ]
    assert len(set(marks)) == 1
    looked_at = ("layers.2.mlp.down_proj.weight", "norm.weight", "embed_tokens.weight")
    for name, parameter in model.named_parameters():
        if name.endswith(looked_at):
            with torch.no_grad():
                kept = parameter.clone()
                parameter.view(-1)[-1] += 1
                assert LanguageModel(model, None).fingerprint != marks[0], name
                parameter.copy_(kept)
    assert LanguageModel(model, None).fingerprint == marks[0]


def test_fingerprint_samples_a_large_parameter_up_to_its_end():
    config = tf.LlamaConfig(
        vocab_size=200,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
    )
    model = build(config)
    mark = LanguageModel(model, None).fingerprint
    embeddings = model.model.embed_tokens.weight
    assert embeddings.numel() > 4096
    with torch.no_grad():
        embeddings[-1] += 1
    assert LanguageModel(model, None).fingerprint != mark
