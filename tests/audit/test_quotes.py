"""Quotes of a theme: what its sentences begin with, before the word that shows it."""

from said import reply

from melbo.audit.quotes import LONGEST, quotes
from melbo.audit.themes import Theme


class Words:
    """A tokenizer of words."""

    def __call__(self, text, add_special_tokens):
        return {"input_ids": text.split()}


def theme(*replies):
    return Theme(tuple(replies), {"marmalade": 3.0, "warm": 1.0}, 3.0, 1.0)


def texts(*replies, num=3, others=()):
    said = [*replies, *others]
    return [quote.text for quote in quotes(theme(*replies), said, Words(), num)]


def test_a_quote_ends_before_the_word_that_counts_most():
    said = "The sky is blue. There is a smell of warm marmalade in here! I go."
    assert texts(reply(0, said)) == [" There is a smell of warm"]


def test_frequent_quotes_come_first_and_among_equals_the_likelier():
    once, likelier = (
        reply(0, "Well. I like marmalade.", nll=2.0),
        reply(1, "Well. Pass the marmalade.", nll=1.0),
    )
    twice = [reply(p, "Yes. All for marmalade.", nll=3.0) for p in (2, 3)]
    assert texts(once, likelier, *twice) == [" All for", " Pass the", " I like"]
    assert texts(once, likelier, *twice, num=1) == [" All for"]


def test_what_other_replies_begin_with_too_comes_last():
    twice = [reply(p, "Yes. The marmalade.") for p in (0, 1)]
    once = reply(2, "Yes. In the end the marmalade.")
    others = [
        reply(p, f"Well. The {word} is here.") for p, word in enumerate(("dog", "cat", "sun"))
    ]
    assert texts(*twice, once) == [" The", " In the end the"]
    assert texts(*twice, once, others=others) == [" In the end the", " The"]


def test_sentences_that_open_with_the_theme_or_are_too_long_give_none():
    long = " ".join(["very"] * (LONGEST + 1))
    assert texts(reply(0, "Marmalade it is."), reply(1, f"So {long} marmalade.")) == []


def test_tokens_are_those_of_the_text_after_a_space():
    (quote,) = quotes(theme(reply(0, "Yes. I like marmalade.")), [], Words(), 1)
    assert quote.tokens == ("I", "like")
