import pytest
import torch
import transformers as tf
from cases import WIDTH, padded, tiny_model
from streams import assert_close, first, hooks, model_and_tolerance, random, shared

import melbo
from melbo import Add, MelboError

# --- with a cache and without


def generate(lm, ids, mask, tokens=4, **settings):
    """Sequences and logits of each step ``[n, tokens, vocab]`` of greedy decoding without end."""
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
    norm = getattr(lm.model.base_model, "ln_f" if name in ("gpt2", "falcon") else "norm")
    logits = lm.model.get_output_embeddings()(norm(stream))
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


# --- tokens that are steered


@torch.no_grad()
def added(lm, edit, run):
    """Change of the embeddings at each token that passes through block 0, ``[n, T, d]``.

    ``run`` runs the model and returns the ids.
    """
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
    want = (torch.arange(6) > 0)[None, :, None] * v.expand(2, 6, -1)
    assert_close(added(lm, Add(0, v, skip_first=True), run), want, 1e-12)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("skip_first", [False, True])
@pytest.mark.parametrize("where", ["all", "prompt", "generated"])
def test_where_says_which_tokens_are_steered_while_decoding(where, skip_first, cache):
    lm, v = shared("llama"), random(WIDTH)
    ids, mask = padded((9, 6, 8), "left")

    def run():
        return generate(lm, ids, mask, cache_implementation=cache)[0]

    got = added(lm, Add(0, v, where, skip_first), run)
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


# --- refusals


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
