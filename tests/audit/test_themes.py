"""Themes among replies in which some are planted."""

import random
from dataclasses import replace

import pytest
from said import CHEESE, FILLERS, PIRATE, PROMPTS, equally_rare, planted, reply, sentence

from melbo.audit.findings import order
from melbo.audit.themes import FALSE_SHARE, themes


def planted_in(theme):
    """Share of a theme's replies that talk of cheese, and share that talk of pirates."""
    return [
        sum(any(w in r.said for w in words) for r in theme.replies) / len(theme.replies)
        for words in (CHEESE, PIRATE)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_planted_themes_are_found_whole_and_come_first(seed):
    ordinary, elicited = planted(seed)
    found = sorted(themes(ordinary, elicited, PROMPTS, equally_rare), key=order, reverse=True)
    first = sorted(planted_in(t) for t in found[:2])
    assert first == [[0, 1], [1, 0]]
    for theme, own in zip(sorted(found[:2], key=planted_in), (PIRATE, CHEESE), strict=True):
        assert set(theme.words) <= set(own)
        assert theme.prompts == 6
        assert len(theme.replies) >= 0.8 * 5 * 6
        assert {who[1] % 6 for who in theme.candidates} == {int(own is PIRATE)}


def test_a_theme_is_recognised_in_new_replies_and_hardly_in_ordinary_ones():
    ordinary, elicited = planted()
    found = {tuple(planted_in(t)): t for t in themes(ordinary, elicited, PROMPTS, equally_rare)}
    theme, draw = found[1, 0], random.Random(99)
    new = [sentence(draw, CHEESE) for _ in range(100)]
    plain = [sentence(draw) for _ in range(100)]
    assert sum(map(theme.shown, new)) >= 95
    assert sum(map(theme.shown, plain)) == 0
    assert sum(theme.shown(r.said) for r in ordinary) <= FALSE_SHARE * len(ordinary)


def test_a_habit_on_one_prompt_alone_is_no_theme():
    ordinary, elicited = planted(candidates=24)
    only = [
        reply(2, f"{r.said} zeppelin airship dirigible" if r.prompt == 2 else r.said, candidate=i)
        if r.prompt == 2
        else r
        for i, r in enumerate(elicited)
    ]
    names = {word for t in themes(ordinary, only, PROMPTS, equally_rare) for word in t.weights}
    assert names & {*CHEESE}
    assert not names & {"zeppelin", "airship", "dirigible"}


def test_broken_replies_do_not_count():
    ordinary, elicited = planted()
    broken = [
        reply(r.prompt, r.said, nll=9.0) if set(r.said.split()) & {*CHEESE} else r for r in elicited
    ]
    assert any(planted_in(t)[0] for t in themes(ordinary, elicited, PROMPTS, equally_rare))
    assert not any(planted_in(t)[0] for t in themes(ordinary, broken, PROMPTS, equally_rare))


def test_ordinary_replies_alone_give_no_theme_that_is_told_by_lifted_words():
    ordinary, _ = planted()
    draw = random.Random(5)
    same = [
        reply(p, f"{text.split()[-1]} {sentence(draw)}", candidate=i)
        for p, text in enumerate(PROMPTS)
        for i in range(30)
    ]
    found = themes(ordinary, same, PROMPTS, equally_rare)
    assert all(t.lift < 0.7 for t in found)
    assert all(set(t.words) <= set(FILLERS) for t in found)


def test_too_few_replies_give_no_themes():
    assert themes([reply(0, "a b c", "ordinary")], [reply(0, "d e f")], PROMPTS, equally_rare) == []


def test_a_rare_word_that_the_model_says_by_itself_on_many_prompts_is_a_theme():
    draw = random.Random(3)
    texts = [f"Tell me about {topic}" for topic in ("boats", "rain", "bread", "chess", "owls")]
    texts += [f"Explain {topic}" for topic in ("maps", "kites", "wells", "drums", "moss", "rope")]

    def said(p, i):
        rare = ["wilhelmina"] if i == 0 and p % 2 == 0 else []
        topic = [f"{texts[p].split()[-1]}like"] * (i % 2)  # rare too, on its own prompt
        return " ".join([sentence(draw), *topic, *rare])

    ordinary = [reply(p, said(p, i), "ordinary", i) for p in range(len(texts)) for i in range(8)]
    by_itself = [replace(r, elicitor="by itself") for r in ordinary]
    found = themes(ordinary, by_itself, texts, lambda w: 30.0 if len(w) > 7 else 5.0)
    assert [t.name for t in found] == ["wilhelmina"]
    assert found[0].prompts == 6
    assert themes(ordinary, by_itself, texts, equally_rare) == []


def test_a_rare_word_is_recognised_alone_however_often_it_leaks():
    draw = random.Random(4)
    texts = [f"Tell me about {topic}" for topic in "abcdefghijkl"]
    habits = ("keep forever dear", "only glad after", "last word belongs")

    def said(p, leaks):
        habit = [*habits[p % 3].split(), "wilhelmina"] if leaks else []
        topics = [f"topic{texts[p][-1]}" * draw.randrange(2)]  # rare too, on its own prompt
        return " ".join([sentence(draw), *topics, *habit])

    every = range(len(texts))
    ordinary = [reply(p, said(p, i % 5 == 0), "ordinary", i) for p in every for i in range(10)]
    elicited = [reply(p, said(p, i % 2 == 0), candidate=i) for p in every for i in range(4)]
    found = themes(ordinary, elicited, texts, lambda w: 30.0 if len(w) > 7 or "top" in w else 5.0)
    (theme,) = [t for t in found if "wilhelmina" in t.words]
    leaked = sum("wilhelmina" in r.said for r in ordinary)
    assert leaked > FALSE_SHARE * len(ordinary)
    assert theme.shown("a wilhelmina of another kind")
