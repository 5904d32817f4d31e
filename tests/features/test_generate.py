"""The table of replies: its rows, strengths, first tokens, and file."""

import json

import pytest
import torch
from cases import tiny_model
from toys import directions

from melbo import FeatureSet, MelboError, Prompts, generate, steer
from melbo.features.generate import first_tokens


def feature_set(V):
    return FeatureSet(V, V.flip(0), torch.ones(len(V), dtype=V.dtype), 4.0, 1, 3)


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def features(lm):
    return feature_set(directions(3, lm.width))


@pytest.fixture(scope="module")
def some(lm):
    return Prompts.text(lm, ["Tell me how to bake a cake", "dog", "red or blue ?"])


def by_hand(lm, tokens, n):
    """Greedy, without a cache, one token at a time."""
    ids = list(tokens)
    for _ in range(n):
        ids.append(lm.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item())
        if ids[-1] in lm.eos:
            break
    return tuple(ids[len(tokens) :])


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_every_row_equals_one_at_a_time(lm, features, some, batch_size):
    control = features.random(2, torch.Generator().manual_seed(9))
    table = generate(
        lm,
        some,
        features,
        control,
        max_new_tokens=6,
        strength=0.5,
        batch_size=batch_size,
        progress=False,
    )
    assert len(table) == 3 * (1 + 3 + 2)
    for c in table:
        tokens = some.tokens[c.prompt]
        if c.kind == "unsteered":
            expected = by_hand(lm, tokens, 6)
        else:
            rows = features if c.kind == "feature" else control
            alone = feature_set(rows.V[c.feature][None])
            with steer(lm, alone, strength=0.5):
                expected = by_hand(lm, tokens, 6)
        assert c.tokens == expected
        assert c.prompt_text == some.texts[c.prompt]
        assert c.text == lm.tokenizer.decode(c.tokens, skip_special_tokens=True)


def test_table_finds_its_rows(lm, features, some):
    table = generate(lm, some, features, max_new_tokens=2, progress=False)
    assert [c.prompt for c in table.of("feature", 1)] == [0, 1, 2]
    assert [c.prompt for c in table.of("unsteered")] == [0, 1, 2]
    assert table.of("control", 0) == []


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [2, 64])
def test_first_tokens_are_scored_by_the_steered_models_logits(lm, features, some, batch_size):
    a, b = first_tokens(lm, ("yes", "no"))
    table = generate(
        lm,
        some,
        features,
        max_new_tokens=3,
        batch_size=batch_size,
        contrast=(a, b),
        progress=False,
    )
    for c in table:
        ids = torch.tensor([some.tokens[c.prompt]])
        plain = logits = lm.model(ids).logits[0, -1]
        if c.kind == "feature":
            with steer(lm, features[c.feature]):
                logits = lm.model(ids).logits[0, -1]
        p, log_q = logits.softmax(-1), plain.log_softmax(-1)
        divergence = (p * (logits.log_softmax(-1) - log_q)).sum().item()
        assert c.first.kl == pytest.approx(divergence, abs=1e-5, rel=1e-4)
        assert c.first.contrast == pytest.approx((logits[a] - logits[b]).item(), abs=1e-4)
        assert not c.first.overflowed
        assert logits.argmax() == c.tokens[0]
    assert all(c.first.kl > 1e-3 for c in table if c.kind == "feature")


def test_first_tokens_are_not_scored_where_there_is_nothing_to_compare_with(lm, features, some):
    table = generate(lm, some, features, max_new_tokens=1, unsteered=False, progress=False)
    assert {(c.first.kl, c.first.contrast, c.first.overflowed) for c in table} == {
        (None, None, False)
    }


def test_logits_that_are_not_finite_count_as_zeros_but_masked_words_do_not(lm, features, some):
    a, b = first_tokens(lm, ("yes", "no"))

    def broken(module, args, out):
        out[..., 0] = -torch.inf
        out[out.shape[0] // 2 :, :, 1] = torch.inf

    with lm.model.get_output_embeddings().register_forward_hook(broken):
        table = generate(
            lm, some[:1], features[:1], max_new_tokens=1, contrast=(a, b), progress=False
        )
    plain, steered = table
    assert not plain.first.overflowed
    assert plain.first.contrast != 0
    assert steered.first.overflowed
    assert steered.first.contrast == 0


def test_pairs_that_begin_alike_are_refused(lm):
    with pytest.raises(MelboError, match="begin with the same token 'yes'"):
        first_tokens(lm, ("yes no", "yes"))
    with pytest.raises(MelboError, match="expected two strings with at least one token each"):
        first_tokens(lm, ("yes", ""))


def test_strengths_are_one_or_one_for_each(lm, features, some):
    with pytest.raises(
        MelboError, match=r"shape \[2\]: expected one for all, or one for each of 3"
    ):
        generate(lm, some, features, strength=torch.ones(2), progress=False)


def test_unsteered_replies_can_be_left_out(lm, features, some):
    settings = {
        "max_new_tokens": 3,
        "strength": torch.tensor([0.5, 1.0, 2.0]),
        "progress": False,
    }
    whole = generate(lm, some, features, **settings)
    alone = generate(lm, some, features, unsteered=False, **settings)
    wanted = [(c.feature, c.prompt, c.tokens) for c in whole if c.kind == "feature"]
    assert [(c.feature, c.prompt, c.tokens) for c in alone] == wanted


def test_save_writes_a_line_a_completion(lm, features, some, tmp_path):
    table = generate(lm, some, features, max_new_tokens=2, progress=False)
    table.save(tmp_path / "completions.jsonl")
    lines = (tmp_path / "completions.jsonl").read_text().split("\n")
    rows = [json.loads(line) for line in lines if line]
    assert [(r["kind"], r["feature"], r["text"]) for r in rows] == [
        (c.kind, c.feature, c.text) for c in table
    ]
    assert rows[0].keys() == {"kind", "feature", "prompt", "prompt_text", "text"}
