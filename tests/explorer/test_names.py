import math

import pytest

from melbo.explorer.names import names
from melbo.features.generate import Completion

PROMPTS = [f"prompt number {i}" for i in range(6)]


def said(kind, feature, texts):
    return [Completion(kind, feature, p, PROMPTS[p], text, ()) for p, text in enumerate(texts)]


def replies():
    rows = said("unsteered", None, ["the answer is a cake"] * 6)
    rows += said("feature", 0, ["the answer is Marmalade"] * 5 + ["the answer is a cake"])
    rows += said("feature", 1, ["the cake is a lie"] * 6)
    rows += said("feature", 4, ["the answer is a cake"] * 5 + ["once only"])
    rows += said("control", 0, ["marmalade of chance"] * 6)
    return rows


def test_a_feature_is_named_after_the_words_that_only_its_replies_hold():
    assert names(replies()) == {0: "marmalade", 1: "lie", 4: ""}


def by_hand(rows, feature, word):
    """log((a+½)(d+½)/((b+½)(c+½))) over its standard error, counted reply by reply."""
    holds = {True: [0, 0], False: [0, 0]}
    for c in rows:
        if c.kind != "control":
            words = set(c.text.lower().split()) - set(c.prompt_text.lower().split())
            holds[c.feature == feature][word not in words] += 1
    a, b, c, d = (n + 0.5 for n in (*holds[True], *holds[False]))
    return math.log(a * d / (b * c)) / math.sqrt(1 / a + 1 / b + 1 / c + 1 / d)


def test_words_stand_in_the_order_of_their_log_odds():
    # 5 of 6 and 3 of 6 replies, a word that others hold too, and one below the limit
    texts = ["ferret stoat otter", "ferret stoat otter", "ferret stoat otter"]
    texts += ["ferret otter", "ferret otter", "cake"]
    rows = [*replies(), *said("feature", 2, texts), *said("feature", 3, ["otter"] * 3 + ["a"] * 3)]
    z = {word: by_hand(rows, 2, word) for word in ("ferret", "stoat", "otter", "cake")}
    expected = [w for w in sorted(z, key=lambda w: -z[w]) if z[w] > 2.5]
    assert len(expected) == 3
    assert expected[0] == "ferret"
    assert names(rows)[2] == ", ".join(expected)
    assert names(rows, words=1)[2] == "ferret"


def test_words_of_the_prompt_are_its_topic():
    rows = said("unsteered", None, ["yes"] * 6) + said("feature", 0, PROMPTS)
    assert names(rows) == {0: ""}


@pytest.mark.parametrize("texts", [[""] * 6, ["..."] * 6])
def test_replies_without_a_word_give_no_name(texts):
    assert names(said("unsteered", None, texts) + said("feature", 0, texts)) == {0: ""}


def test_no_features_no_names():
    assert names([]) == names(said("unsteered", None, ["yes"] * 6)) == {}
