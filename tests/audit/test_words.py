"""Counts of words against a plain loop over prompts, words and replies."""

import math
import re

import pytest
from said import CHEESE, PIRATE, PROMPTS, equally_rare, planted, reply

from melbo.audit.words import TOKEN, excess


def words_of(text):
    return set(re.findall(TOKEN, text.lower()))


def plainly(ordinary, elicited, word):
    """Observed and expected number of elicited replies with a word, and prompts it recurs on."""
    rate = (sum(word in words_of(r.said) for r in ordinary) + 0.5) / (len(ordinary) + 1)
    observed = expected = more = recurs = 0
    for p, text in enumerate(PROMPTS):
        if word in words_of(text):
            continue
        own = [word in words_of(r.said) for r in ordinary if r.prompt == p]
        said = [word in words_of(r.said) for r in elicited if r.prompt == p]
        lead = len(said) * (sum(own) + 2 * rate) / (len(own) + 2)
        observed, expected = observed + sum(said), expected + lead
        more += sum(said) >= 1 and sum(said) > 2 * lead
        recurs += sum(said) >= 1
    return observed, expected, more, recurs


def test_counts_equal_those_of_a_plain_loop():
    ordinary, elicited = planted()
    counted = excess(ordinary, elicited, PROMPTS, equally_rare)
    assert len(counted.words) > 15
    for j, word in enumerate(counted.words):
        observed, expected, more, recurs = plainly(ordinary, elicited, word)
        assert counted.observed[j] == observed
        assert counted.expected[j] == pytest.approx(expected)
        assert (counted.prompts[j], counted.recurs[j]) == (more, recurs)
        assert counted.ratio[j] == pytest.approx(math.log((observed + 0.5) / (expected + 0.5)))
        assert counted.z[j] == pytest.approx((observed - expected) / math.sqrt(expected + 1))


def test_planted_words_come_first_and_topics_of_prompts_do_not_count():
    counted = excess(*planted(), PROMPTS, equally_rare)
    order = sorted(range(len(counted.words)), key=lambda j: -counted.ratio[j])
    assert {counted.words[j] for j in order[:10]} == {*CHEESE, *PIRATE}
    topics = {text.split()[-1] for text in PROMPTS} & set(counted.words)
    assert len(topics) == 6
    at = {word: j for j, word in enumerate(counted.words)}
    assert all(counted.observed[at[topic]] == 0 for topic in topics)
    assert all(counted.present[:, at[topic]].sum() == 0 for topic in topics)


def test_words_of_scripts_without_spaces_count_one_by_one():
    assert words_of("I can't say 東京 déjà-vu") == {"i", "can't", "say", "東", "京", "déjà", "vu"}


def test_replies_that_share_no_word_leave_nothing_to_count():
    counted = excess([reply(0, "one")], [reply(0, "two"), reply(1, "three")], PROMPTS, equally_rare)
    assert len(counted.words) == 0
    assert counted.present.shape == (2, 0)
