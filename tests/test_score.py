import math

import pytest
import torch
from cases import tiny_model

from melbo import Completions, Prompts
from melbo.generate import Completion
from melbo.score import flag, kl, nll, novelty, repetition


def table(*texts):
    kinds = [("unsteered", None)] + [("feature", i) for i in range(len(texts) - 1)]
    return Completions(tuple(Completion(k, i, 0, "p", text, ()) for (k, i), text in zip(kinds, texts, strict=True)))


def test_novelty_is_one_minus_cosine_to_the_unsteered_reply():
    plain, same, other, near, empty = novelty(table("the cat sat", "the cat sat", "dogs ran home", "the cat ran", ""))
    assert plain == same == 0
    assert other > 0.9
    assert 0 < near < other
    assert empty == 1


def test_novelty_of_nothing_but_empty_replies():
    assert novelty(table("", "", "word")) == [0, 0, 1]


def test_repetition_counts_repeated_four_grams():
    assert repetition([1, 2, 3, 4, 5, 6]) == 0
    assert repetition([7] * 9) == pytest.approx(5 / 6)  # six 4-grams, one distinct
    assert repetition([1, 2, 3]) == 0


def test_nll_equals_one_reply_at_a_time():
    lm = tiny_model("llama")
    prompts = Prompts(("a", "b"), ((5, 6, 7), (8, 9, 10, 11, 12)))
    replies = [(0, (13, 14)), (1, (15,)), (0, (16, 17, 18, 19)), (1, (20, 21, 22))]
    rows = [Completion("feature", i, p, "", "", tokens) for i, (p, tokens) in enumerate(replies)]
    found = nll(lm, prompts, rows, batch_size=3, progress=False)
    for value, (p, tokens) in zip(found, replies, strict=True):
        ids = torch.tensor([[*prompts.tokens[p], *tokens]])
        logp = lm.model(ids).logits[0].log_softmax(-1)
        start = len(prompts.tokens[p])
        expected = -sum(logp[start + j - 1, t].item() for j, t in enumerate(tokens)) / len(tokens)
        assert value == pytest.approx(expected, abs=1e-5)


def test_flags():
    assert flag([0.0, 0.1], [1.0, 1.0], [0.0, 0.0]) == "inert"
    assert flag([0.9, 0.9], [1.0, 1.0], [0.0, 0.0]) == "active"
    assert flag([0.9, 0.9], [9.0, 9.0], [0.0, 0.0]) == "broken"
    assert flag([0.9, 0.9], [1.0, 1.0], [0.5, 0.5]) == "broken"
    assert flag([0.9, 0.9, 0.9], [1.0, 9.0, 1.0], [0.0, 0.0, 0.0]) == "active"


def test_kl_by_hand():
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
    assert kl(p.log(), q.log()) == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1))
    assert kl(q, q + 3) == pytest.approx(0, abs=1e-12)
