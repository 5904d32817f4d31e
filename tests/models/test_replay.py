from functools import cache

import pytest
import torch
import transformers as tf
from cases import (
    FLOAT32_INSIDE,
    TINY,
    VOCAB,
    WIDTH,
    WINDOW,
    build,
    padded,
    prompts,
    tiny_model,
    tiny_tokenizer,
)
from torch import nn

import melbo
from melbo import Add, CausalMap, FeatureSet, LanguageModel, MelboError

torch.set_num_threads(1)

EVERY = sorted(TINY)
LENGTHS = {"right": (9, 6, 8), "left": (9, 6, 8), "none": (7, 7, 7)}

# A block whose attention is limited to the window, and one that sees everything (None: there is none), by model
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


@cache
def shared(name, dtype=torch.float64):
    """A model for tests that leave it as it is."""
    return tiny_model(name, dtype)


def model_and_tolerance(name, side):
    """The model, and how far two batches of another shape may be apart on it (runs of one shape agree to 1e-10 in float64)."""
    if name not in FLOAT32_INSIDE:
        return shared(name), 1e-10
    return (shared(name, torch.float32), 1e-5) if side == "left" else (shared(name), 1e-6)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def first(out):
    return out[0] if isinstance(out, tuple) else out


@torch.no_grad()
def streams(lm, ids, mask=None):
    """``hidden_states`` of the model's own forward; the last entry is taken before the final norm."""
    last = []
    handle = lm.blocks[-1].register_forward_hook(lambda block, args, out: last.append(first(out)))
    try:
        out = lm.model(
            input_ids=ids,
            attention_mask=None if mask is None else mask.long(),
            use_cache=False,
            output_hidden_states=True,
        )
    finally:
        handle.remove()
    return [*out.hidden_states[:-1], *last]


def assert_close(got, want, tolerance):
    assert got.shape == want.shape
    off = (got - want).abs().max().item() / max(1.0, want.abs().max().item())
    assert off <= tolerance


def hooks(lm):
    """Hooks on any module that are not transformers' own (it installs some when asked for hidden states)."""
    return [
        hook
        for module in lm.model.modules()
        for hook in [
            *module._forward_hooks.values(),
            *module._forward_pre_hooks.values(),
            *module._backward_hooks.values(),
        ]
        if not hook.__module__.startswith("transformers.")
    ]


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
            assert_close(got[real], streams(lm, ids, real)[target][real], tolerance)
    if (
        side == "right"
    ):  # row i·n + j is prompt j, with its own mask; on the left, padding moves the positions of many models
        for j, row in enumerate(ids):
            alone = lm.capture(
                row[real[j]][None],
                torch.ones(1, int(real[j].sum()), dtype=torch.bool),
                source,
                target,
            )
            assert_close(
                together[2, j][real[j]], alone.replay(alone.hidden + vectors[2])[0], tolerance
            )


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
    size = {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    config = tf.Gemma4TextConfig(
        **size,
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
    if (
        name != "recurrent_gemma"
    ):  # transformers masks padding in its attention and not in its recurrence
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


# --- refusals


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.parametrize(("source", "target"), [(0, 2), (1, 2), (1, 4), (2, 3)])
def test_non_finite_activations_name_the_first_layer_that_has_them(source, target, poison):
    lm = tiny_model("llama")
    with torch.no_grad():
        lm.blocks[1].mlp.down_proj.weight[0, 0] = poison
    with pytest.raises(
        MelboError,
        match=r"hidden_states\[2\] of the unsteered model is not finite in float64.*float32 or bfloat16",
    ):
        lm.capture(*padded((9, 6)), source, target)
    assert not hooks(lm)
    assert lm.capture(*padded((9, 6)), 0, 1).output.isfinite().all()


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
    with pytest.raises(
        MelboError, match=r"found no decoder blocks in LlamaForCausalLM: pass blocks="
    ) as err:
        LanguageModel(model, None)
    assert one_line(err)


def test_blocks_that_do_not_replay_are_refused():
    model, calls = TINY["llama"](), []

    def drift(block, args, out):
        calls.append(block)
        return out * len(calls)

    model.model.layers[1].register_forward_hook(drift)
    with pytest.raises(
        MelboError,
        match=r"LlamaForCausalLM cannot be sliced: replayed blocks differ from its hidden states by .*blocks=",
    ) as err:
        LanguageModel(model, None)
    assert one_line(err)


@pytest.mark.parametrize("path", ["no.such", "model.norm", "model.layers.0", ""])
def test_a_path_without_blocks_is_refused(path):
    with pytest.raises(MelboError, match=r"no list of blocks at .*expected a ModuleList") as err:
        LanguageModel(TINY["llama"](), None, blocks=path)
    assert one_line(err)


def test_the_right_path_is_taken_where_the_wrong_list_would_be():
    model = TINY["llama"]().double()
    layers = model.model._modules.pop("layers")
    model.model.decoys = nn.ModuleList(nn.Identity() for _ in layers)
    model.model.layers = layers
    with pytest.raises(MelboError, match=r"cannot be sliced.*blocks=") as err:
        LanguageModel(model, None)
    assert one_line(err)
    lm = LanguageModel(model, None, blocks="model.layers")
    assert lm.blocks is layers
    assert not hooks(lm)
    ids, real = padded((9, 6))
    assert_close(lm.capture(ids, real, 1, 3).output[real], streams(lm, ids, real)[3][real], 1e-10)


def test_layers_count_from_both_ends_and_stay_in_range():
    lm = shared("llama")
    assert lm.depth == 4
    assert [lm.layer(i) for i in range(5)] == [0, 1, 2, 3, 4]
    assert [lm.layer(i) for i in range(-5, 0)] == [0, 1, 2, 3, 4]
    for index in (5, -6):
        with pytest.raises(
            MelboError, match=rf"target is {index}, but llama has 4 blocks: expected 0 to 4"
        ):
            lm.layer(index, "target")


# --- fingerprint


def test_fingerprint_survives_a_cast_and_notices_a_weight():
    model = TINY["llama"]()
    # what float32 holds beyond bfloat16 is lost on the way
    marks = [
        LanguageModel(model.to(dtype), None).fingerprint
        for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.float32)
    ]
    assert len(set(marks)) == 1
    for name, parameter in model.named_parameters():
        if name.endswith(("layers.2.mlp.down_proj.weight", "norm.weight", "embed_tokens.weight")):
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


# --- steering is the perturbation of the map


def feature(vector, source, target, **settings):
    """A feature that steers with ``vector``."""
    scale = vector.norm().item()
    v = vector[None] / scale
    meta = {"map": settings} if settings else {}
    return FeatureSet(v, v.clone(), torch.ones(1, dtype=v.dtype), scale, source, target, meta)


@pytest.mark.parametrize("skip_first", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "falcon", "falcon_alibi", "mistral"])
def test_steering_does_what_the_map_measured(name, skip_first):
    lm = shared(name)
    texts = prompts((9, 6, 8))
    v = 2 * random(WIDTH)
    for source, target in [(0, 2), (1, lm.depth - 1), (1, lm.depth)]:
        plain, steered, fitted = [], [], []
        for tokens in texts.tokens:
            ids = torch.tensor([tokens])
            plain.append(streams(lm, ids)[target][0, -3:].mean(0))
            with melbo.edit(lm, Add(source, v, skip_first=skip_first)):
                steered.append(streams(lm, ids)[target][0, -3:].mean(0))
            with melbo.steer(lm, feature(v, source, target, skip_first=skip_first)):
                fitted.append(streams(lm, ids)[target][0, -3:].mean(0))
        for batch in (1, 3):
            want = CausalMap(
                lm, texts, source, target, skip_first=skip_first, prompt_batch=batch
            ).value(v[None])[0]
            assert want.norm() > 0.1
            tolerance = 1e-6 if name in FLOAT32_INSIDE else 1e-9
            assert_close((torch.stack(steered) - torch.stack(plain)).mean(0), want, tolerance)
            assert_close((torch.stack(fitted) - torch.stack(plain)).mean(0), want, tolerance)


def test_skipping_the_first_token_changes_the_response():
    lm, v = shared("llama"), random(1, WIDTH)
    values = [
        CausalMap(lm, prompts((9, 6)), 1, 3, skip_first=skip).value(v) for skip in (False, True)
    ]
    assert (values[0] - values[1]).norm() > 1e-3


def generate(lm, ids, mask, tokens=4, **settings):
    """Greedy decoding that does not stop: the sequences and the logits of each step ``[n, tokens, vocab]``."""
    length = {"max_new_tokens": tokens, "min_new_tokens": tokens}
    config = tf.GenerationConfig(
        **length,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
        **settings,
    )
    out = lm.model.generate(input_ids=ids, attention_mask=mask.long(), generation_config=config)
    return out.sequences, torch.stack(out.logits, 1)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mistral", "falcon"])
@torch.no_grad()
def test_steered_logits_are_the_same_with_a_cache_without_one_and_replayed(name):
    lm, source, v = shared(name), 1, random(WIDTH)
    ids, mask = padded((9,))
    plain, _ = generate(lm, ids, mask)
    with melbo.edit(lm, Add(source, v)):
        sequences, cached = generate(lm, ids, mask)
        uncached = lm.model(input_ids=sequences, use_cache=False).logits
        prefill = lm.model(input_ids=ids, use_cache=True)
        step = lm.model(
            input_ids=sequences[:, 9:10], past_key_values=prefill.past_key_values, use_cache=True
        ).logits
    assert sequences.shape[1] == 13
    assert not torch.equal(sequences, plain)
    assert_close(cached, uncached[:, 8:-1], 1e-6)
    assert_close(prefill.logits, uncached[:, :9], 1e-6)
    assert_close(step, uncached[:, 9:10], 1e-6)
    part = lm.capture(sequences, torch.ones_like(sequences, dtype=torch.bool), source, lm.depth)
    stream = part.replay(part.hidden + v)
    norm = {"llama": "norm", "gemma2": "norm", "mistral": "norm", "gpt2": "ln_f", "falcon": "ln_f"}[
        name
    ]
    logits = lm.model.get_output_embeddings()(getattr(lm.model.base_model, norm)(stream))
    if name == "gemma2":
        cap = lm.config.final_logit_softcapping
        logits = cap * torch.tanh(logits / cap)
    assert_close(logits, uncached, 1e-6)


@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "gemma2", "mistral", "falcon", "falcon_alibi", "opt"]
)
@torch.no_grad()
def test_left_padded_rows_with_their_own_vectors_decode_as_one_by_one(name):
    lm, tolerance = model_and_tolerance(name, "left")
    ids, mask = padded((9, 6, 8), "left")
    vectors = random(3, WIDTH, dtype=lm.dtype)
    for skip_first in (False, True):
        with melbo.edit(lm, Add(1, vectors, skip_first=skip_first)):
            sequences, logits = generate(lm, ids, mask)
        for i, real in enumerate(mask):
            alone = ids[i][real][None]
            with melbo.edit(lm, Add(1, vectors[i], skip_first=skip_first)):
                want, want_logits = generate(lm, alone, torch.ones_like(alone))
            assert torch.equal(sequences[i, 9:], want[0, len(alone[0]) :])
            assert_close(logits[i], want_logits[0], tolerance)


@torch.no_grad()
def test_per_row_features_steer_their_rows():
    lm = shared("llama")
    ids, mask = padded((9, 6), "left")
    rows = [feature(random(WIDTH, seed=i), 1, 3) for i in range(2)]
    scale = rows[0].scale
    bank = FeatureSet(
        *(torch.cat([getattr(r, k) for r in rows]) for k in ("V", "U", "alpha")), scale, 1, 3
    )
    with melbo.steer(lm, bank, strength=-0.5, per_row=True):
        got = streams(lm, ids, mask)[3]
    for i, row in enumerate(bank):
        with melbo.edit(lm, Add(1, -0.5 * scale * row.V[0])):
            assert_close(got[i][mask[i]], streams(lm, ids, mask)[3][i][mask[i]], 1e-12)


@torch.no_grad()
def test_several_features_add_up():
    lm = shared("llama")
    ids, mask = padded((9, 6))
    a, b = random(WIDTH), random(WIDTH, seed=1)
    with melbo.steer(lm, feature(a, 1, 3), feature(b, 1, 3)):
        together = streams(lm, ids, mask)[4]
    with melbo.edit(lm, Add(1, a + b)):
        assert_close(together, streams(lm, ids, mask)[4], 1e-10)
    with melbo.edit(lm, Add(1, a)), melbo.edit(lm, Add(1, b)):
        assert_close(together, streams(lm, ids, mask)[4], 1e-10)


# --- which tokens are steered


@torch.no_grad()
def added(lm, edit, run):
    """What the edit adds to the embeddings at each token that ``run`` (which returns the ids) passes through block 0: ``[n, T, d]``."""
    entering = []
    with melbo.edit(lm, edit):
        handle = lm.blocks[0].register_forward_pre_hook(
            lambda _, args, kwargs: entering.append(first(args)), with_kwargs=True
        )
        try:
            ids = run()
        finally:
            handle.remove()
    entering = torch.cat(entering, 1)
    return entering - lm.model.get_input_embeddings()(ids[:, : entering.shape[1]])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("skip_first", [False, True])
def test_padding_and_a_skipped_first_token_are_not_steered(side, skip_first):
    lm, v = shared("llama"), random(WIDTH)
    ids, mask = padded((9, 6, 8), side)

    def run():
        lm.model(input_ids=ids, attention_mask=mask.long(), use_cache=False)
        return ids

    expected = mask.clone()
    if skip_first:
        for row in expected:
            row[row.nonzero()[0]] = False
    assert_close(added(lm, Add(0, v, skip_first=skip_first), run), expected[:, :, None] * v, 1e-12)


def test_without_a_mask_every_token_is_steered():
    lm, v = shared("llama"), random(WIDTH)
    ids, _ = padded((6, 6))

    def run():
        lm.model(input_ids=ids)
        return ids

    assert_close(added(lm, Add(0, v), run), v.expand(2, 6, -1), 1e-12)
    assert_close(
        added(lm, Add(0, v, skip_first=True), run),
        (torch.arange(6) > 0)[None, :, None] * v.expand(2, 6, -1),
        1e-12,
    )


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("skip_first", [False, True])
@pytest.mark.parametrize("where", ["all", "prompt", "generated"])
def test_where_says_which_tokens_are_steered_while_decoding(where, skip_first, cache):
    lm, v = shared("llama"), random(WIDTH)
    ids, mask = padded((9, 6, 8), "left")
    got = added(
        lm,
        Add(0, v, where, skip_first),
        lambda: generate(lm, ids, mask, cache_implementation=cache)[0],
    )
    prompt = mask.clone()
    if skip_first:
        for row in prompt:
            row[row.nonzero()[0]] = False
    reply = torch.ones(3, 3, dtype=torch.bool)  # the fourth token is never read
    expected = torch.cat([prompt & (where != "generated"), reply & (where != "prompt")], 1)
    real = torch.cat([mask, reply], 1)  # padding is seen by no real token
    assert_close(got[real], (expected[:, :, None] * v)[real], 1e-12)


@pytest.mark.parametrize("side", ["left", "right"])
def test_only_the_last_tokens_of_a_prompt_are_steered_and_all_that_is_generated(side):
    lm, v = shared("llama"), random(WIDTH)
    ids, mask = padded((9, 6, 8), side)
    end = mask.long().cumsum(1) > mask.sum(1, keepdim=True) - 3

    def read():
        lm.model(input_ids=ids, attention_mask=mask.long(), use_cache=False)
        return ids

    assert_close(added(lm, Add(0, v, last=3), read), (mask & end)[:, :, None] * v, 1e-12)
    if side == "left":
        got = added(lm, Add(0, v, last=3), lambda: generate(lm, ids, mask)[0])
        real = torch.cat([mask, torch.ones(3, 3, dtype=torch.bool)], 1)
        expected = torch.cat([mask & end, torch.ones(3, 3, dtype=torch.bool)], 1)
        assert_close(got[real], (expected[:, :, None] * v)[real], 1e-12)


def test_features_fitted_at_the_target_positions_steer_there(monkeypatch):
    lm = shared("llama")
    cmap = CausalMap(lm, prompts((9,)), 1, 3, positions="target")
    bank = melbo.fit(cmap, melbo.Exponential(2, 0.5, max_steps=1), progress=False).features
    ids = torch.tensor(cmap.prompts.tokens)
    with melbo.steer(lm, bank[0]):
        steered = streams(lm, ids)[3][0, -3:].mean(0)
    assert_close(steered - streams(lm, ids)[3][0, -3:].mean(0), cmap.value(0.5 * bank.V)[0], 1e-9)


# --- leaving, and refusing to enter


@torch.no_grad()
def test_leaving_restores_the_logits_bit_for_bit():
    lm = tiny_model("llama")
    ids, mask = padded((9, 6), "left")
    run = {"input_ids": ids, "attention_mask": mask.long()}
    before = lm.model(**run).logits
    weights = {k: v.clone() for k, v in lm.model.state_dict().items()}
    with melbo.edit(lm, Add(1, random(WIDTH)), Add(2, random(WIDTH))):
        assert (lm.model(**run).logits - before).abs().max() > 1e-3
    assert torch.equal(lm.model(**run).logits, before)
    with pytest.raises(ZeroDivisionError), melbo.steer(lm, feature(random(WIDTH), 1, 3)):
        raise ZeroDivisionError
    assert torch.equal(lm.model(**run).logits, before)
    assert all(torch.equal(weights[k], v) for k, v in lm.model.state_dict().items())
    assert not hooks(lm)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Add(4, torch.ones(WIDTH)), "cannot steer at layer 4: llama has blocks 0 to 3"),
        (Add(1, torch.ones(WIDTH + 1)), r"shape \(33,\), expected \[32\]"),
        (Add(1, torch.ones(1, 1, WIDTH)), r"shape \(1, 1, 32\), expected \[32\] or \[rows, 32\]"),
        (
            Add(1, torch.ones(WIDTH), where="everywhere"),
            "where is 'everywhere': expected 'all', 'prompt' or 'generated'",
        ),
    ],
)
def test_edits_that_do_not_fit_are_refused_before_anything_is_touched(edit, message):
    lm = tiny_model("llama")
    with pytest.raises(MelboError, match=message), melbo.edit(lm, Add(0, torch.ones(WIDTH)), edit):
        pass
    assert not hooks(lm)


def test_another_number_of_rows_than_vectors_is_refused_and_undone():
    lm = tiny_model("llama")
    ids, _ = padded((6, 6))
    with (
        pytest.raises(MelboError, match=r"got 3 vectors for a batch of 2 rows"),
        melbo.edit(lm, Add(1, torch.ones(3, WIDTH))),
    ):
        lm.model(input_ids=ids)
    assert not hooks(lm)


def test_a_set_of_several_features_or_of_another_model_is_refused():
    lm = shared("llama")
    one = feature(random(WIDTH), 1, 3)
    two = FeatureSet(one.V.repeat(2, 1), one.U.repeat(2, 1), one.alpha.repeat(2), one.scale, 1, 3)
    with pytest.raises(MelboError, match="got a set of 2 features"):
        melbo.steer(lm, two)
    foreign = one.with_meta(map={"model": {"name": "another", "sha256": "0" * 64}})
    with pytest.raises(MelboError, match=r"fitted on another .*this is llama"):
        melbo.steer(lm, foreign)
