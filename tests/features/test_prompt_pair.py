import pytest
import torch
from cases import tiny_model
from slow_maps import by_hooks

from melbo import (
    Add,
    CausalMap,
    FeatureSet,
    MelboError,
    Prompts,
    actadd,
    caa,
    edit,
    generate,
    steer,
)
from melbo.features.prompt_pair import AddPrompt
from melbo.models.text.prompts import pad_rows, read_pairs


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def cmap(lm):
    return CausalMap(lm, Prompts.text(lm, ["Tell me how to bake a cake"]), 1, 3)


def hidden(lm, tokens, layer):
    with torch.no_grad():
        return lm.model(torch.tensor([tokens]), output_hidden_states=True).hidden_states[layer][0]


def test_caa_is_the_mean_difference_at_the_last_token(lm, cmap):
    plus, minus = (
        Prompts.text(lm, ["yes she was red", "it is a dog"]),
        Prompts.text(lm, ["no he was blue ! !", "we and cat"]),
    )
    features = caa(cmap, plus, minus, 2.0)
    difference = (
        sum(
            hidden(lm, a, 1)[-1] - hidden(lm, b, 1)[-1]
            for a, b in zip(plus.tokens, minus.tokens, strict=True)
        )
        / 2
    )
    assert features.scale == pytest.approx(2 * difference.norm().item(), rel=1e-5)
    assert torch.allclose(features.scale * features.V[0], 2 * difference, atol=1e-5)
    assert (features.source, features.target, len(features)) == (1, 3, 1)
    assert "rows" not in features.meta["method"]
    everywhere = caa(cmap, plus, minus, 2.0, from_last=False)
    effect = cmap.value(everywhere.scale * everywhere.V)
    assert torch.allclose(everywhere.U, effect / effect.norm(), atol=1e-6)
    ids = torch.tensor([[5, 6, 7]])
    with steer(lm, everywhere):
        steered = lm.model(ids).logits
    with edit(lm, Add(1, 2 * difference)):
        assert torch.allclose(lm.model(ids).logits, steered, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "opt"])
def test_caa_steers_from_the_last_token_of_a_prompt_on(name, tmp_path):
    lm = tiny_model(name)
    prompts = Prompts.text(lm, ["Tell me how to bake a cake", "we and cat"])
    for settings in ({}, {"skip_first": True}, {"positions": "target", "target_tokens": 2}):
        cmap = CausalMap(lm, prompts, 1, 2, **settings)
        caa(cmap, Prompts.text(lm, ["yes"]), Prompts.text(lm, ["no"]), 8.0).save(
            tmp_path, force=True
        )
        found = FeatureSet.load(tmp_path, lm)
        vector = found.scale * found.V[0].double()
        truth = by_hooks(lm, prompts, 1, 2, vector[None], "target", target_tokens=1).mean((1, 2))
        assert torch.allclose(found.U.double(), truth / truth.norm(), atol=1e-5)
    texts = generate(lm, prompts, found, max_new_tokens=6, progress=False).of("feature", 0)
    for reply, start in zip(texts, prompts.tokens, strict=True):
        assert list(reply.tokens) == by_hand(lm, start, vector, 6)


def by_hand(lm, start, vector, length):
    """A reply without a cache, with a vector added at block 1 from the prompt's last token on."""

    def push(block, args, kwargs):
        hidden = (args[0] if args else kwargs["hidden_states"]).clone()
        hidden[:, len(start) - 1 :] += vector
        return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

    reply = []
    with lm.blocks[1].register_forward_pre_hook(push, with_kwargs=True):
        while len(reply) < length and not {*reply} & {*lm.eos}:
            logits = lm.model(torch.tensor([[*start, *reply]])).logits
            reply.append(logits[0, -1].argmax().item())
    return reply


def test_caa_refuses_what_is_not_pairs(lm, cmap):
    two, one = Prompts.text(lm, ["yes", "no"]), Prompts.text(lm, ["dog"])
    with pytest.raises(MelboError, match="got 2 prompts with the behaviour and 1 without"):
        caa(cmap, two, one)
    with pytest.raises(MelboError, match="mean difference has norm 0"):
        caa(cmap, one, one)
    with pytest.raises(MelboError, match="coefficient is -1"):
        caa(cmap, two, Prompts.text(lm, ["sun", "cat"]), -1)


def test_actadd_adds_the_difference_at_the_front(lm):
    plus, minus, prompt = (5, 9, 11, 20), (5, 30, 2, 8), (5, 6, 7, 40, 41, 42)
    e = actadd(lm, plus, minus, 1, 3.0)
    assert torch.allclose(e.vectors, 3.0 * (hidden(lm, plus, 1) - hidden(lm, minus, 1)), atol=1e-9)
    seen = []
    handle = lm.blocks[1].register_forward_hook(
        lambda m, a, k, out: seen.append(a[0] if a else k["hidden_states"]), with_kwargs=True
    )
    with edit(lm, e):
        lm.model(torch.tensor([prompt]))
    handle.remove()
    change = seen[0][0] - hidden(lm, prompt, 1)
    assert torch.allclose(change[:4], e.vectors, atol=1e-9)
    assert (change[4:] == 0).all()


def test_the_shorter_prompt_is_padded_at_its_end(lm):
    e = actadd(lm, (5, 9), (5, 30, 2, 8), 1)
    assert e.vectors.shape == (4, lm.width)
    # the same first token
    assert torch.allclose(e.vectors[0], torch.zeros_like(e.vectors[0]), atol=1e-9)


def test_rows_with_padding_are_changed_at_their_own_front(lm):
    e = actadd(lm, (5, 9, 11), (5, 30, 2), 1, 3.0)
    prompts = [(5, 6, 7, 40, 41, 42), (5, 6), (9, 10, 11)]
    ids, mask = pad_rows(prompts, lm.pad, side="left")
    with edit(lm, e):
        together = lm.model(ids, attention_mask=mask.long()).logits[:, -1]
        for row, prompt in zip(together, prompts, strict=True):
            assert torch.allclose(row, lm.model(torch.tensor([prompt])).logits[0, -1], atol=1e-6)


@pytest.mark.parametrize("prompt", [(5, 6, 7, 40, 41), (5,)])
def test_replies_are_the_same_with_a_cache_and_without_one(lm, prompt):
    e = actadd(lm, (5, 9, 11), (5, 30, 2), 1, 5.0)
    ids = torch.tensor([prompt])
    settings = {
        "attention_mask": torch.ones_like(ids),
        "max_new_tokens": 6,
        "do_sample": False,
        "eos_token_id": None,
    }
    with edit(lm, e), torch.no_grad():
        assert torch.equal(
            lm.model.generate(ids, use_cache=True, **settings),
            lm.model.generate(ids, use_cache=False, **settings),
        )


def test_pairs_are_read_from_a_file(tmp_path):
    file = tmp_path / "pairs.tsv"
    file.write_text("I love it\tI hate it\n\n yes \t no\n")
    assert read_pairs(file) == (["I love it", "yes"], ["I hate it", "no"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a\tb\nonly one\n", "line 2 of .* holds 1 texts: expected two"),
        ("a\tb\tc\n", "line 1 of .* holds 3 texts"),
        ("a\t\n", "line 1 of .* holds 1 texts"),
        ("\n", "holds no pairs"),
    ],
)
def test_uneven_pairs_say_which_line(tmp_path, text, says):
    file = tmp_path / "pairs.tsv"
    file.write_text(text)
    with pytest.raises(MelboError, match=says):
        read_pairs(file)
    with pytest.raises(MelboError, match="cannot read"):
        read_pairs(tmp_path / "none.tsv")


def test_edits_that_do_not_fit_are_refused(lm):
    with pytest.raises(MelboError, match="got a prompt without tokens"):
        actadd(lm, (), (5,), 1)
    with (
        pytest.raises(MelboError, match=r"shape \(32,\), expected \[tokens, 32\]"),
        edit(lm, AddPrompt(1, torch.ones(32))),
    ):
        pass
    with pytest.raises(MelboError, match="no block reads layer 4"):
        actadd(lm, (5,), (6,), 4)
