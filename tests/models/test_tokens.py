"""Where edits act, against a plain loop without a cache."""

import pytest
import torch
import transformers as tf
from cases import FLOAT32_INSIDE, TINY, VOCAB, WIDTH, build, padded, tiny_model, tiny_tokenizer
from recurrent import RECURRENT
from streams import hooks, random, shared

import melbo
from melbo import Add, LanguageModel, MelboError, Sara
from melbo.features.prompt_pair import AddPrompt
from melbo.models.decoding.decode import Batching, decode
from research.tiny.adapted import ADAPTED, adapted

N = 5
_SIDE = {"layers": 3, "attention_heads": 4, "ffn_dim": 48}
PROMPTS = [(1, 20, 30, 40, 50, 60, 70, 80, 33), (1, 21, 31, 41, 51), (1, 44, 34, 24, 64, 54, 11)]
PLACES = [(w, s) for w in ("all", "prompt", "generated") for s in (False, True)]
#: Replies in a batch that transformers itself gets wrong with a cache, or cannot make.
NO_CACHE = {"rwkv", "xlstm"}
#: Padding on the left is read.
READS_PADDING = {"rwkv", "xlstm", "minimax", "recurrent_gemma"}


@pytest.fixture(autouse=True)
def _no_end(monkeypatch):
    monkeypatch.setattr(LanguageModel, "eos", property(lambda self: []))


def made(name):
    dtype = torch.float32 if name in FLOAT32_INSIDE else torch.float64
    if name in TINY:
        return tiny_model(name, dtype)
    return LanguageModel(RECURRENT[name]().to(dtype), tiny_tokenizer(), name=name)


def by_hand(lm, prompt, v, at):
    """Logits of a plain loop's reply ``[N, vocabulary]``.

    ``at`` says of columns, and the length of the prompt, which are steered.
    """
    ids, found = torch.tensor([prompt]), []

    def hook(block, args, kwargs):
        h = args[0] if args else kwargs["hidden_states"]
        t = torch.arange(h.shape[1])
        h = h + at(t, len(prompt))[None, :, None] * v
        return ((h, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": h})

    with lm.blocks[1].register_forward_pre_hook(hook, with_kwargs=True), torch.no_grad():
        for _ in range(N):
            logits = lm.model(input_ids=ids, use_cache=False).logits
            found.append(logits[0, -1].float())
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
    return torch.stack(found)


def assert_same(found, want, told=None):
    """Compare logits, which tell of a first token that is steered or not where replies do not."""
    assert (found - want).norm() <= 1e-4 * want.norm(), told


def tokens(logits):
    return logits.argmax(-1).tolist()


def place(where, skip_first):
    def at(t, start):
        inside = {"all": t >= 0, "prompt": t < start, "generated": t >= start}[where]
        return inside & (t >= int(skip_first))

    return at


def reply(lm, prompt, mask=True, **more):
    """Logits of ``generate`` ``[N, vocabulary]``, as a user calls it."""
    ids = torch.tensor([prompt])
    more |= {"attention_mask": torch.ones_like(ids)} if mask else {}
    settings = {"max_new_tokens": N, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    settings |= {"output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad():
        out = lm.model.generate(input_ids=ids, **settings, **more)
    return torch.stack(out.logits, 1)[0].float()


def decoded(lm, prompts, edit, *how):
    """Replies of `decode`, and the logits of their first tokens."""
    first = {}
    found = decode(lm, prompts, edit, N, *how, first_logits=first.__setitem__, progress=False)
    return found, torch.stack([first[i].float() for i in range(len(prompts))])


def assert_decoded(lm, prompts, edit, want, *how):
    """Compare `decode` with logits of replies, one for each prompt."""
    replies, first = decoded(lm, prompts, edit, *how)
    assert replies == [tokens(each) for each in want]
    assert_same(first, torch.stack([each[0] for each in want]))


def direction(lm):
    return 3 * random(WIDTH, seed=3, dtype=lm.dtype)


def check_places(lm, ways, prompt=PROMPTS[1]):
    """Compare every place and way of calling ``generate`` with the plain loop."""
    v, seen = direction(lm), {}
    for where, skip_first in PLACES:
        want = seen[where, skip_first] = by_hand(lm, prompt, v, place(where, skip_first))
        with melbo.edit(lm, Add(1, v, where, skip_first)):
            for way in ways:
                assert_same(reply(lm, prompt, **way), want, (where, skip_first, way))
    # what is generated never is the first token
    del seen["generated", True]
    different = list(seen.values())
    for i, one in enumerate(different):
        for two in different[:i]:
            assert (one - two).norm() > 1e-3 * one.norm()  # the places differ at all


# with a mask and a cache every model is tried by research.compatibility
@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "opt", "falcon_alibi", "rwkv", "mamba", "minimax"]
)
def test_each_place_is_steered_without_a_mask_or_a_cache(name):
    check_places(made(name), [{"mask": False}, {"use_cache": False}])


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "opt", "qwen3_moe", "falcon_alibi"])
def test_a_prompt_read_in_chunks_is_prompt(name):
    lm = made(name)
    check_places(lm, [{"prefill_chunk_size": n} for n in (3, 4)])
    v = direction(lm)
    want = by_hand(lm, PROMPTS[0], v, lambda t, start: t >= start - 3)
    with melbo.edit(lm, Add(1, v, last=3)):
        for way in ({}, {"use_cache": False}, {"prefill_chunk_size": 4}, {"prefill_chunk_size": 7}):
            assert_same(reply(lm, PROMPTS[0], **way), want, way)


@pytest.mark.parametrize("kind", ADAPTED)
def test_each_place_is_steered_under_an_adapter(kind):
    lm = LanguageModel(adapted(kind).double(), tiny_tokenizer())
    check_places(lm, [{"use_cache": False}, {"prefill_chunk_size": 4}])


@pytest.mark.parametrize("name", ["llama", "opt", "recurrent_gemma", *RECURRENT])
def test_decoded_rows_are_steered_as_in_a_loop_whatever_shares_their_batch(name):
    lm = made(name)
    assert lm.traits.cache == (name not in NO_CACHE)
    assert lm.traits.left_padding == (name not in READS_PADDING)
    v = direction(lm)
    for where, skip_first in (("prompt", True), ("generated", False)):
        want = [by_hand(lm, p, v, place(where, skip_first)) for p in PROMPTS]
        edit = Add(1, v.repeat(6, 1), where, skip_first)
        for size, apart in ((4, 16), (6, 0)):
            batching = Batching(size, leg=2, pass_rows=apart)
            assert_decoded(lm, PROMPTS * 2, edit, want * 2, batching)


def test_the_decoder_of_an_encoder_decoder_replies_in_rows_of_one_length():
    """Its positions count padding."""
    sizes = {f"{side}_{name}": n for side in ("decoder", "encoder") for name, n in _SIDE.items()}
    config = tf.BartConfig(
        vocab_size=VOCAB,
        d_model=WIDTH,
        max_position_embeddings=64,
        is_decoder=True,
        is_encoder_decoder=False,
        **sizes,
    )
    lm = LanguageModel(build(config).double(), tiny_tokenizer())
    assert not lm.traits.left_padding
    v = direction(lm)
    want = [by_hand(lm, p, v, place("generated", False)) for p in PROMPTS]
    assert_decoded(lm, PROMPTS, Add(1, v, "generated"), want)


@pytest.mark.parametrize("name", ["llama", "opt", "mamba", "rwkv", "minimax", "zamba2"])
def test_actadd_reaches_the_first_tokens_only(name):
    lm = made(name)
    vectors = torch.stack([direction(lm), -direction(lm)])
    edit = AddPrompt(1, vectors)

    def at(t, start):
        return (t == 0).to(lm.dtype) - (t == 1).to(lm.dtype)

    want = [by_hand(lm, p, direction(lm), at) for p in PROMPTS]
    with melbo.edit(lm, edit):
        for prompt, each in zip(PROMPTS, want, strict=True):
            assert_same(reply(lm, prompt, mask=False), each)
    assert_decoded(lm, PROMPTS, edit, want)


@pytest.mark.parametrize("name", ["opt", "llama", "mamba"])
def test_sara_reads_a_prompt_once_and_no_padding(name):
    lm = made(name)
    plus, minus = (lm.activations(p, 1) for p in PROMPTS[1:])
    edit = Sara(1, plus, minus, 2.0)
    alone = []
    for prompt in PROMPTS:
        with melbo.edit(lm, edit):
            alone.append(reply(lm, prompt))
        with melbo.edit(lm, edit):
            assert_same(reply(lm, prompt, use_cache=False), alone[-1])
    assert_decoded(lm, PROMPTS, edit, alone)


def test_sara_refuses_a_prompt_in_parts_and_takes_static_caches():
    lm = shared("llama")
    plus, minus = (lm.activations(p, 1) for p in PROMPTS[1:])
    says = "reads a prompt whole, got 4 of its 9 tokens: leave prefill_chunk_size out"
    with melbo.edit(lm, Sara(1, plus, minus)), pytest.raises(MelboError, match=says):
        reply(lm, PROMPTS[0], prefill_chunk_size=4)
    ids, mask = padded((9, 6), "left")
    settings = {"max_new_tokens": N, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    found = []
    for cache in ("dynamic", "static"):
        with melbo.edit(lm, Sara(1, plus, minus, 2.0)):
            found.append(
                lm.model.generate(
                    ids, attention_mask=mask.long(), cache_implementation=cache, **settings
                )
            )
    assert torch.equal(*found)


# --- called by hand


@torch.no_grad()
def test_a_loop_by_hand_counts_on_from_its_cache_or_is_told_the_prompt():
    lm, v, prompt = shared("llama"), direction(shared("llama")), PROMPTS[0]
    for where in ("prompt", "generated"):
        want, found, new = by_hand(lm, prompt, v, place(where, False)), [], []
        with melbo.edit(lm, Add(1, v, where)):
            out = lm.model(input_ids=torch.tensor([prompt]), use_cache=True)
            for _ in range(N):
                found.append(out.logits[0, -1].float())
                one = found[-1].argmax().reshape(1, 1)
                out = lm.model(input_ids=one, past_key_values=out.past_key_values)
        assert_same(torch.stack(found), want)
        with melbo.edit(lm, Add(1, v, where), prompt=len(prompt)):
            for _ in range(N):
                ids = torch.tensor([[*prompt, *[int(each.argmax()) for each in new]]])
                new.append(lm.model(input_ids=ids, use_cache=False).logits[0, -1].float())
        assert_same(torch.stack(new), want)


@pytest.mark.parametrize("edit", [{"where": "prompt"}, {"where": "generated"}, {"last": 2}])
@torch.no_grad()
def test_what_may_be_prompt_or_reply_is_refused(edit):
    lm, ids = shared("llama"), torch.tensor([PROMPTS[0]])
    e = Add(1, direction(lm), **edit)
    says = "cannot tell prompt from reply in a pass of"
    with melbo.edit(lm, e):
        out = lm.model(input_ids=ids[:, :4], use_cache=True)
        with pytest.raises(MelboError, match=f"{says} 5 tokens on a cache: use generate"):
            lm.model(input_ids=ids[:, 4:], past_key_values=out.past_key_values)
    with melbo.edit(lm, e):
        lm.model(input_ids=ids[:, :8], use_cache=False)
        with pytest.raises(MelboError, match=f"{says} one token more, no cache: .*prompt="):
            lm.model(input_ids=ids, use_cache=False)
    with melbo.edit(lm, e, prompt=9):
        out = lm.model(input_ids=ids[:, :4], use_cache=True)
        split = lm.model(input_ids=ids[:, 4:], past_key_values=out.past_key_values).logits
        whole = lm.model(input_ids=ids).logits
    assert torch.allclose(split, whole[:, 4:], atol=1e-8)


@torch.no_grad()
def test_a_state_from_elsewhere_that_tells_no_length_is_refused():
    lm = made("mamba")
    ids = torch.tensor([PROMPTS[0]])
    state = lm.model(input_ids=ids, use_cache=True).cache_params
    with (
        melbo.edit(lm, Add(1, direction(lm), skip_first=True)),
        pytest.raises(MelboError, match="does not tell how many tokens it holds"),
    ):
        lm.model(input_ids=ids[:, :1], cache_params=state, use_cache=True)


def test_the_model_is_left_as_it_was():
    lm = tiny_model("llama")
    v = direction(lm)
    with melbo.edit(lm, Add(1, v)), melbo.edit(lm, Add(1, v, "generated")):
        assert "generate" in lm.model.__dict__
    assert "generate" not in lm.model.__dict__
    assert not hooks(lm)
