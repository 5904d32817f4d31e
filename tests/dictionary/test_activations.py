"""Contexts of text, and their activations as shuffled batches."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from cases import tiny_model

from melbo import MelboError
from melbo.dictionary import ActivationStream, Contexts
from melbo.dictionary.activations import activations

TEXTS = ["the dog or the cat " * 9, "how to bake cake", "he or she and it " * 6]


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama", torch.float32)


def test_contexts_are_the_tokens_of_each_text_in_order(lm):
    found = Contexts.of(lm, TEXTS, 8)
    for number, text in enumerate(TEXTS):
        rows = [
            ids[real].tolist()
            for ids, real, of in zip(found.ids, found.mask, found.texts, strict=True)
            if of == number
        ]
        tokens = lm.tokenizer(text)["input_ids"]
        assert [*itertools.chain(*rows)] == tokens[: sum(map(len, rows))]
        # a rest of one token is left out, because nothing would be read of it
        assert len(tokens) - sum(map(len, rows)) == (len(tokens) % 8 == 1)
        assert all(len(row) == 8 for row in rows[:-1])
    assert found.rows == sum(int(real.sum()) - 1 for real in found.mask)


def test_passes_hold_every_context_once(lm):
    found = Contexts.of(lm, TEXTS, 8)
    passes = list(found.passes(24))
    assert all(len(few) <= 3 for few in passes)
    assert torch.cat([few.ids for few in passes]).equal(found.ids)


def test_activations_leave_the_first_token_of_a_context_out(lm):
    contexts = Contexts.of(lm, TEXTS, 8)
    found = activations(lm, contexts, [1, 2])
    assert found.shape == (contexts.rows, 2, lm.width)
    wanted = [
        lm.activations(ids[real].tolist(), layer)[1:]
        for ids, real in zip(contexts.ids, contexts.mask, strict=True)
        for layer in (1,)
    ]
    torch.testing.assert_close(found[:, 0], torch.cat(wanted), rtol=1e-4, atol=1e-5)


def sums(rows):
    return sorted(rows.double().sum((1, 2)).tolist())


def test_an_epoch_holds_every_activation_once_in_a_new_order(lm):
    contexts = Contexts.of(lm, TEXTS, 8)
    size = contexts.rows // 2
    stream = ActivationStream(lm, contexts, [1]).batches(size)
    first, second = (torch.cat(list(itertools.islice(stream, 2))) for _ in range(2))
    assert not first.equal(second)
    if contexts.rows % 2 == 0:
        assert sums(first) == pytest.approx(sums(activations(lm, contexts, [1])), abs=1e-4)
    assert len(set(sums(first))) == len(first)


def test_a_small_buffer_shuffles_and_loses_nothing(lm):
    contexts = Contexts.of(lm, TEXTS * 4, 8)
    stream = ActivationStream(lm, contexts, [1], buffer=60).batches(10)
    every = activations(lm, contexts, [1])
    seen = torch.cat(list(itertools.islice(stream, contexts.rows // 10)))
    near = torch.cdist(seen[:, 0].double(), every[:, 0].double()).min(1).values
    assert near.max() < 1e-4
    assert not seen[:50].equal(every[:50])


def test_a_seed_gives_the_same_batches(lm):
    contexts = Contexts.of(lm, TEXTS, 8)
    first, second, other = (
        next(ActivationStream(lm, contexts, [1], seed=seed).batches(20)) for seed in (3, 3, 4)
    )
    assert first.equal(second)
    assert not first.equal(other)


def test_where_everything_fits_the_model_reads_the_text_once(lm):
    calls = []
    handle = lm.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    contexts = Contexts.of(lm, TEXTS, 8)
    stream = ActivationStream(lm, contexts, [1])
    stream.sample(5)
    batches = stream.batches(10)
    for _ in range(50):
        next(batches)
    handle.remove()
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("texts", "length", "said"),
    [
        ([], 8, "got no text"),
        (["dog", " \n"], 8, "text 2 of 2 is empty"),
        (TEXTS, 1, "length of contexts is 1"),
        (TEXTS, 10_000, "length of contexts is 10000"),
    ],
)
def test_text_that_cannot_be_read_is_refused(lm, texts, length, said):
    with pytest.raises(MelboError, match=said):
        Contexts.of(lm, texts, length)


def test_text_of_one_token_is_refused():
    lm = SimpleNamespace(
        name="short", max_length=8, pad=0, tokenizer=lambda text, verbose: {"input_ids": [5]}
    )
    with pytest.raises(MelboError, match="more than one token"):
        Contexts.of(lm, ["dog"], 8)


def test_batches_larger_than_the_text_are_refused(lm):
    contexts = Contexts.of(lm, TEXTS, 8)
    with pytest.raises(MelboError, match="give more text"):
        next(ActivationStream(lm, contexts, [1]).batches(5000))
    with pytest.raises(MelboError, match="one layer or more"):
        ActivationStream(lm, contexts, [])
