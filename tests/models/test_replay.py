import pytest
import torch
import transformers as tf
from cases import TINY, VOCAB, WIDTH, WINDOW, build, padded, prompts, tiny_model, tiny_tokenizer
from streams import assert_close, hooks, model_and_tolerance, random, shared, streams

import melbo
from melbo import Add, CausalMap, LanguageModel, MelboError

EVERY = sorted(TINY)
LENGTHS = {"right": (9, 6, 8), "left": (9, 6, 8), "none": (7, 7, 7)}

# for each model, a block whose attention is limited to the window, and one that sees everything
# (None: there is none)
WINDOWS = {
    "mistral": (1, None),
    "starcoder2": (0, None),
    "qwen2_sliding": (1, 0),
    "gemma2": (0, 1),
    "gemma3": (2, 1),
    "olmo3": (0, 1),
    "cohere2": (2, 1),
    "exaone4": (0, 1),
    "gpt_oss": (0, 1),
    "gpt_neo": (1, 0),
}


def count_calls(modules):
    """Calls of each module, as a list that goes on growing, and the handles."""
    seen = []
    return seen, [
        m.register_forward_pre_hook(lambda _, args, name=name: seen.append(name))
        for name, m in modules.items()
    ]


# --- capture and replay


@pytest.mark.parametrize("side", LENGTHS)
@pytest.mark.parametrize("name", EVERY)
def test_capture_and_replay_equal_the_models_hidden_states(name, side):
    lm, _ = model_and_tolerance(name, side)
    tolerance = 1e-10 if lm.dtype == torch.float64 else 1e-6
    ids, real = padded(LENGTHS[side], side)
    truth = streams(lm, ids, real)
    assert len(truth) == lm.depth + 1
    for source in range(lm.depth):
        for target in range(source + 1, lm.depth + 1):
            part = lm.capture(ids, real, source, target)
            replayed = part.replay(part.hidden)
            assert_close(part.hidden[real], truth[source][real], tolerance)
            assert_close(part.output[real], truth[target][real], tolerance)
            assert_close(replayed[real], truth[target][real], tolerance)


@pytest.mark.parametrize("side", LENGTHS)
@pytest.mark.parametrize("name", EVERY)
def test_copies_replay_as_each_would_alone_and_as_the_model_would(name, side):
    lm, tolerance = model_and_tolerance(name, side)
    ids, real = padded(LENGTHS[side], side)
    n, (source, target) = len(ids), (lm.depth - 2, lm.depth)
    part = lm.capture(ids, real, source, target)
    vectors = random(3, WIDTH, dtype=lm.dtype)
    steered = [part.hidden + v * real[:, :, None] for v in vectors]
    together = part.replay(torch.cat(steered)).unflatten(0, (3, n))
    for v, hidden, got in zip(vectors, steered, together, strict=True):
        assert (got - part.output)[real].abs().max() > 0.1
        assert_close(got[real], part.replay(hidden)[real], tolerance)
        with melbo.edit(lm, Add(source, v)):
            if side == "left" and not lm.traits.left_padding:
                # such a model would not reply to a prompt as it does without padding
                with pytest.raises(melbo.MelboError, match="reads padding"):
                    streams(lm, ids, real)
                continue
            assert_close(got[real], streams(lm, ids, real)[target][real], tolerance)
    if side != "right":  # on the left, padding moves the positions of many models
        return
    for j, row in enumerate(ids):  # row i·n + j is prompt j, with its own mask
        tokens = row[real[j]][None]
        alone = lm.capture(tokens, torch.ones_like(tokens, dtype=torch.bool), source, target)
        want = alone.replay(alone.hidden + vectors[2])[0]
        assert_close(together[2, j][real[j]], want, tolerance)


def test_final_norm_and_head_on_the_last_stream_give_the_models_logits():
    lm = shared("llama")
    ids, real = padded((9, 6))
    part = lm.capture(ids, real, 1, lm.depth)
    own = lm.model(input_ids=ids, attention_mask=real.long(), output_hidden_states=True)
    normed = lm.model.model.norm(part.output)
    assert_close(normed[real], own.hidden_states[-1][real], 1e-10)
    assert_close(lm.model.lm_head(normed)[real], own.logits[real], 1e-10)


def test_trace_yields_every_layer_of_the_slice():
    lm = shared("llama")
    ids, real = padded((9, 6))
    truth = streams(lm, ids, real)
    part = lm.capture(ids, real, 1, 4)
    steps = list(part.trace(part.hidden))
    assert [layer for layer, _ in steps] == [2, 3, 4]
    for layer, hidden in steps:
        assert_close(hidden[real], truth[layer][real], 1e-10)


def test_bfloat16_replays_bit_for_bit():
    lm = tiny_model("llama", torch.bfloat16)
    ids, real = padded((9, 6))
    part = lm.capture(ids, real, 0, lm.depth)
    assert part.hidden.dtype == torch.bfloat16
    assert torch.equal(part.replay(part.hidden), part.output)


@pytest.mark.parametrize("oracle", ["vjp", "jvp", "hvp", "bilinear"])
def test_a_mixture_of_experts_as_transformers_builds_it_has_every_derivative(oracle):
    model = TINY["mixtral"]()
    model.set_experts_implementation("grouped_mm")  # the default of from_pretrained
    v, u = random(2, WIDTH), random(2, WIDTH, seed=1)
    calls = {
        "vjp": lambda cmap: cmap.value_and_vjp(v, u)[1],
        "jvp": lambda cmap: cmap.jvp(v),
        "hvp": lambda cmap: cmap.hvp(u, v),
        "bilinear": lambda cmap: cmap.bilinear(v, v),
    }
    want, got = (
        calls[oracle](CausalMap(lm, prompts((7,)), 1, 3))
        for lm in (shared("mixtral"), LanguageModel(model, tiny_tokenizer()))
    )
    assert_close(got.double(), want, 1e-4)


def test_blocks_that_share_keys_and_values_replay_from_every_layer_or_are_refused():
    config = tf.Gemma4TextConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        global_head_dim=8,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,  # blocks 2 and 3 attend to the keys and values of blocks 0 and 1
        vocab_size_per_layer_input=VOCAB,
        hidden_size_per_layer_input=8,
        pad_token_id=0,
    )
    ids, real = padded((9, 6))
    v = random(WIDTH)
    try:
        lm = LanguageModel(build(config).double(), tiny_tokenizer())
    except MelboError:
        return
    for source in (0, 1, 2, 3):
        part = lm.capture(ids, real, source, 4)
        got = part.replay(torch.cat([part.hidden, part.hidden + v * real[:, :, None]]))[2:]
        with melbo.edit(lm, Add(source, v)):
            assert_close(got[real], streams(lm, ids, real)[4][real], 1e-10)


# --- masks


@pytest.mark.parametrize("name", WINDOWS)
def test_sliding_window_bounds_how_far_a_replayed_block_reaches(name):
    lm, (sliding, full) = shared(name), WINDOWS[name]
    ids, real = padded((3 * WINDOW, 3 * WINDOW - 2))
    kick = torch.zeros(2, 3 * WINDOW, WIDTH, dtype=torch.float64)
    kick[:, 0] = random(WIDTH)

    def reached(block):
        part = lm.capture(ids, real, block, block + 1)
        change = part.replay(torch.cat([part.hidden, part.hidden + kick]))[2:] - part.output
        return change.abs().amax(-1) > 1e-9

    near = torch.arange(3 * WINDOW) < WINDOW
    assert torch.equal(reached(sliding)[real], near.expand(2, -1)[real])
    if full is not None:
        assert reached(full)[real].all()


@pytest.mark.parametrize("name", EVERY)
def test_replay_is_causal_and_blind_to_padding(name):
    lm, tolerance = model_and_tolerance(name, "left")
    ids, real = padded((9, 6, 8), "left")
    part = lm.capture(ids, real, 0, lm.depth)
    last = torch.zeros_like(part.hidden)
    last[:, -1] = random(WIDTH, dtype=lm.dtype)
    pads = random(*part.hidden.shape, dtype=lm.dtype) * ~real[:, :, None]
    base, causal, blind = part.replay(
        torch.cat([part.hidden, part.hidden + last, part.hidden + pads])
    ).unflatten(0, (3, 3))
    assert_close(causal[:, :-1][real[:, :-1]], base[:, :-1][real[:, :-1]], tolerance)
    assert (causal[:, -1] - base[:, -1]).abs().max() > 0.1
    # transformers masks padding in the attention of this one, and not in its recurrence
    if name != "recurrent_gemma":
        assert_close(blind[real], base[real], tolerance)


# --- what runs, and what is left behind


@pytest.mark.parametrize(
    ("name", "trunk", "norm"),
    [("llama", "model", "norm"), ("gpt2", "transformer", "ln_f"), ("gemma2", "model", "norm")],
)
def test_only_the_blocks_of_the_slice_run(name, trunk, norm):
    lm = tiny_model(name)
    top = getattr(lm.model, trunk)
    modules = dict(enumerate(lm.blocks)) | {"norm": getattr(top, norm), "head": lm.model.lm_head}
    seen, _ = count_calls(modules | {"embeddings": lm.model.get_input_embeddings()})
    part = lm.capture(*padded((9, 6)), 1, 2)
    assert seen == ["embeddings", 0, 1]
    seen.clear()
    part.replay(part.hidden.repeat(3, 1, 1))
    assert seen == [1]
    seen.clear()
    part = lm.capture(*padded((9, 6)), 1, 3)
    assert seen == ["embeddings", 0, 1, 2]
    seen.clear()
    part.replay(part.hidden.repeat(3, 1, 1))
    assert seen == [1, 2]


def test_the_model_is_left_as_it_was():
    lm = tiny_model("llama")
    assert not hooks(lm)
    before = {k: v.clone() for k, v in lm.model.state_dict().items()}
    config = lm.model.config.to_dict()
    installed = [dict(m._forward_hooks) for m in lm.model.modules()]
    part = lm.capture(*padded((9, 6)), 1, 3)
    part.replay(part.hidden.repeat(2, 1, 1))
    assert not hooks(lm)
    assert installed == [dict(m._forward_hooks) for m in lm.model.modules()]
    assert not any(m._forward_pre_hooks for m in lm.model.modules())
    after = lm.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert lm.model.config.to_dict() == config
    assert not any(m.training for m in lm.model.modules())


def test_the_model_is_left_as_it_was_when_a_forward_pass_fails():
    lm = tiny_model("llama")
    ids, real = padded((9, 6))
    before = lm.model(input_ids=ids).logits
    with pytest.raises(IndexError):
        lm.capture(ids + VOCAB, real, 1, 3)
    assert not hooks(lm)
    part = lm.capture(ids, real, 1, 3)
    with pytest.raises(RuntimeError):
        part.replay(part.hidden[..., :-1])
    assert not hooks(lm)
    assert torch.equal(lm.model(input_ids=ids).logits, before)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.parametrize(("source", "target"), [(0, 2), (1, 2), (1, 4), (2, 3)])
def test_non_finite_activations_name_the_first_layer_that_has_them(source, target, poison):
    lm = tiny_model("llama")
    with torch.no_grad():
        lm.blocks[1].mlp.down_proj.weight[0, 0] = poison
    says = (
        r"hidden_states\[2\] of the unsteered model is not finite in float64.*float32 or bfloat16"
    )
    with pytest.raises(MelboError, match=says):
        lm.capture(*padded((9, 6)), source, target)
    assert not hooks(lm)
    assert lm.capture(*padded((9, 6)), 0, 1).output.isfinite().all()
