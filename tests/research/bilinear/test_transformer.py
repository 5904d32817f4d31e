"""The small bilinear transformer: its layers, its steering and its training."""

import pytest
import torch

from research.bilinear.model import BilinearTransformer, Shape, Steering
from research.bilinear.text import ACTS, corpus, sentences, tokenizer
from research.bilinear.train import train

SMALL = Shape(vocabulary=20, depth=3, width=16, hidden=24, heads=2, length=8)


def small():
    torch.manual_seed(0)
    return BilinearTransformer(SMALL).double().requires_grad_(False)


def ids(*shape, seed=0):
    return torch.randint(20, shape, generator=torch.Generator().manual_seed(seed))


def test_a_block_is_written_out():
    model, tokens = small(), ids(1, 5)
    x = model.stream(tokens, 1)[0]
    attention, mlp = model.attention[1], model.mlps[1]
    q, k, v = (part.view(5, 2, 8) for part in (x @ attention.qkv.weight.T).split(16, -1))
    mixed = torch.zeros(5, 2, 8, dtype=torch.float64)
    for i in range(5):
        for j in range(i + 1):
            for head in range(2):
                mixed[i, head] += (q[i, head] @ k[j, head]) / 8**0.5 * v[j, head] / (i + 1)
    middle = x + mixed.view(5, 16) @ attention.out.weight.T
    L, R, D = mlp.L.weight, mlp.R.weight, mlp.D.weight
    after = middle + ((middle @ L.T) * (middle @ R.T)) @ D.T
    assert torch.allclose(model.stream(tokens, 2)[0], after)
    assert torch.allclose(model.layer(1)(middle), after - middle)


def test_later_tokens_are_not_seen():
    model, tokens = small(), ids(2, 6)
    other = torch.cat([tokens[:, :-1], (tokens[:, -1:] + 1) % 20], 1)
    assert torch.allclose(model(tokens)[:, :-1], model(other)[:, :-1])
    assert not torch.allclose(model(tokens)[:, -1], model(other)[:, -1])


def test_steering_adds_to_the_last_token_alone_and_notes_what_mlps_read():
    model, tokens = small(), ids(1, 5)
    vectors = torch.randn(3, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    vectors[0] = 0
    steering = Steering(1, vectors, [])
    logits = model(tokens.expand(3, -1), steering)
    assert torch.allclose(logits[0], model(tokens)[0])
    assert torch.allclose(logits[:, :-1], model(tokens)[:, :-1].expand(3, -1, -1))
    assert not torch.allclose(logits[1, -1], logits[2, -1])
    assert len(steering.read) == 3
    before = model.stream(tokens, 1)[0]
    for row in range(3):
        entered = before.clone()
        entered[-1] += vectors[row]
        x = entered + model.attention[1](entered[None])[0]
        assert torch.allclose(steering.read[1][row], x[-1])
    assert torch.allclose(steering.read[0][1], steering.read[0][0])


def test_sentences_say_what_a_feeling_does():
    drawn = sentences(200)
    assert drawn == sentences(200) != sentences(200, seed=1)
    for sentence in drawn:
        feeling, act = sentence.split()[3:5]
        assert ACTS[feeling] == act
    assert any("I am totally neutral looking" in sentence for sentence in drawn)
    text = corpus(50)
    assert text.count("I am ") >= 50
    assert len(text) > 300_000


def test_tokens_are_of_bytes_and_words():
    made = tokenizer("a cat and a cat and a cat\n" * 20, 260)
    for text in ("a cat", "naïve 日本\n"):
        assert made.decode(made.encode(text).ids) == text
    assert len(made.encode("a cat and").ids) < len("a cat and")


@pytest.mark.slow
def test_training_learns_more_than_the_frequencies_of_tokens():
    trained = train(30, vocabulary=300, rows=8, progress=False)
    assert trained.loss < trained.floor
    again = train(30, vocabulary=300, rows=8, progress=False)
    assert again.loss == trained.loss
    assert not any(weight.requires_grad for weight in trained.model.parameters())
