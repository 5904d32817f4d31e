"""Groups of features that say the same, planted among features that do not."""

import random

import pytest
from said import CHEESE, PIRATE, PROMPTS

from melbo.evaluation.groups import groups
from melbo.features.generate import Completion


def table(own, seed=0):
    """Replies of features to six prompts; a feature with words of its own says some each time."""
    draw, rows = random.Random(seed), []
    for p, prompt in enumerate(PROMPTS):
        for i, words in own.items():
            said = [f"word{draw.randrange(300)}" for _ in range(8)]
            said += draw.sample(words, 4) if words else []
            rows.append(Completion("feature", i, p, prompt, f"{prompt} {' '.join(said)}", ()))
    return rows


def members(found):
    return {frozenset(group.features) for group in found}


@pytest.mark.parametrize("seed", range(3))
def test_planted_groups_are_found_with_their_words(seed):
    own = {i: CHEESE if i % 5 == 0 else PIRATE if i % 7 == 3 else () for i in range(30)}
    found = groups(table(own, seed))
    expected = {
        frozenset(i for i, words in own.items() if words is theirs) for theirs in (CHEESE, PIRATE)
    }
    assert members(found) == expected
    assert [len(group.features) for group in found] == [6, 3]
    for group, words in zip(found, (CHEESE, PIRATE), strict=True):
        assert set(group.words) <= set(words)
        assert group.words


def test_features_with_nothing_in_common_are_in_no_group():
    assert groups(table(dict.fromkeys(range(30), ()))) == []


def test_cosines_are_those_of_the_replies_written_out():
    from sklearn.feature_extraction.text import TfidfVectorizer

    rows = table({0: CHEESE, 3: CHEESE, **dict.fromkeys(range(4, 30), ())})
    (group,) = groups(rows)
    words = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b").fit([*(c.text for c in rows), "word"])
    one, other = 0.0, 0.0
    for p in range(len(PROMPTS)):
        said = {c.feature: words.transform([c.text]).toarray()[0] for c in rows if c.prompt == p}
        mean = sum(said.values()) / len(said)
        one, other = one + said[0] - mean, other + said[3] - mean
    assert set(group.features) == {0, 3}
    assert group.cosine == pytest.approx(one @ other / ((one @ one) * (other @ other)) ** 0.5)


@pytest.mark.parametrize("text", ["", "the same"])
def test_features_that_all_say_the_same_are_one_group(text):
    rows = [Completion("feature", i, p, "?", text, ()) for i in range(3) for p in range(2)]
    (group,) = groups(rows)
    assert set(group.features) == {0, 1, 2}
    assert (group.words, group.cosine) == ((), 1.0)


def test_fewer_than_two_features_have_no_groups():
    assert groups([]) == []
    assert groups(table({5: CHEESE})) == []
