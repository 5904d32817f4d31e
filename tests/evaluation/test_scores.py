import math

import pytest
import torch
from cases import tiny_model

from melbo import Completions, Prompts
from melbo.evaluation.scores import (
    Judged,
    Thresholds,
    coherent,
    flag,
    nll,
    novelty,
    repetition,
    says_nothing,
)
from melbo.features.generate import Completion
from melbo.maths.statistics import kl


def table(*texts):
    kinds = [("unsteered", None)] + [("feature", i) for i in range(len(texts) - 1)]
    return Completions(
        tuple(Completion(k, i, 0, "p", text, ()) for (k, i), text in zip(kinds, texts, strict=True))
    )


def test_novelty_is_one_minus_cosine_to_the_unsteered_reply():
    plain, same, other, near, empty = novelty(
        table("the cat sat", "the cat sat", "dogs ran home", "the cat ran", "")
    )
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
    fine = [False, False]
    assert flag([0.0, 0.1], [1.0, 1.0], [0.0, 0.0], fine) == "inert"
    assert flag([0.9, 0.9], [1.0, 1.0], [0.0, 0.0], fine) == "active"
    assert flag([0.9, 0.9], [9.0, 9.0], [0.0, 0.0], fine) == "broken"
    assert flag([0.9, 0.9], [1.0, 1.0], [0.5, 0.5], fine) == "broken"
    assert flag([0.9, 0.9], [1.0, 1.0], [0.0, 0.0], [True, True]) == "broken"
    assert flag([0.9, 0.9, 0.9], [1.0, 9.0, 1.0], [0.0, 0.0, 0.0], [*fine, False]) == "active"


@pytest.mark.parametrize(
    "text",
    ["", " \n", "no no no", "No, no. NO!", "....", "好好好好", "banana banana ban", "!!\n!!"],
)
def test_empty_replies_and_one_word_over_and_over_say_nothing(text):
    assert says_nothing(text)


@pytest.mark.parametrize(
    "text", ["Yes.", "42", "no no yes", "😀", "a b", "couscous", "你好", "so so so it goes"]
)
def test_one_word_and_a_sentence_say_something(text):
    assert not says_nothing(text)


def test_a_feature_that_says_nothing_is_broken_however_likely_that_is():
    lm, prompts = tiny_model("llama"), Prompts(("a",), ((5, 6, 7),))
    limits = Thresholds(broken_nll=math.inf)
    for text, expected in (("no no no", "broken"), ("", "broken"), ("blue sky", "active")):
        rows = [("unsteered", None, "red"), ("feature", 0, text)]
        table = Completions(tuple(Completion(k, i, 0, "a", t, (13,)) for k, i, t in rows))
        judged = Judged(lm, prompts, table, progress=False, thresholds=limits)
        assert judged.scores("feature", 0, [0]).flag == expected


def test_flags_go_by_the_thresholds_that_are_given():
    lm, prompts = tiny_model("llama"), Prompts(("a",), ((5, 6, 7),))
    said = [("unsteered", None, "red", (13,)), ("feature", 0, "blue", (14,))]
    rows = Completions(tuple(Completion(k, i, 0, "a", text, t) for k, i, text, t in said))
    for limits, expected in (
        (Thresholds(broken_nll=math.inf), "active"),
        (Thresholds(broken_nll=0.0), "broken"),
        (Thresholds(inert_similarity=0.0), "inert"),
    ):
        judged = Judged(lm, prompts, rows, progress=False, thresholds=limits)
        assert judged.scores("feature", 0, [0]).flag == expected
        if expected != "inert":
            feature = [rows.rows[1]]
            coherence = coherent(lm, [prompts], feature, limits)
            assert coherence == [expected == "active"]


def test_kl_by_hand():
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
    assert kl(p.log(), q.log()) == pytest.approx(
        0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    )
    assert kl(q, q + 3) == pytest.approx(0, abs=1e-12)


def test_kl_where_words_are_masked():
    p = torch.tensor([0.0, 0.0, -torch.inf])
    assert kl(p, p) == pytest.approx(0)


@pytest.mark.parametrize("name", ["lfm2", "recurrent_gemma"])
def test_nll_of_models_whose_cache_cannot_be_shared(name):
    lm = tiny_model(name, dtype=torch.float32)
    prompts = Prompts(("a",), ((5, 6, 7),))
    rows = [
        Completion("feature", i, 0, "", "", tokens)
        for i, tokens in enumerate([(13, 14), (15,), (16, 17, 18)])
    ]
    for value, row in zip(nll(lm, prompts, rows, progress=False), rows, strict=True):
        logp = (
            lm.model(torch.tensor([[5, 6, 7, *row.tokens]]), use_cache=False)
            .logits[0]
            .log_softmax(-1)
        )
        expected = -sum(logp[2 + j, t].item() for j, t in enumerate(row.tokens)) / len(row.tokens)
        assert value == pytest.approx(expected, abs=1e-3)
