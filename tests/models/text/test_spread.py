import random
import re
from collections import Counter
from itertools import combinations

import pytest

from melbo.models.text import built_in
from melbo.models.text.conversation import Conversation
from melbo.models.text.prompt_files import read_texts
from melbo.models.text.spread import PLACES, spread
from research.organisms.behaviours import BEHAVIOURS
from research.organisms.items import items
from research.organisms.splits import KINDS

PARTS = tuple(PLACES)
EVERY = tuple(prompt for part in PARTS for prompt in spread(part))
#: A character counts as a word in scripts that put no spaces between words.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")


def words(text):
    """Words that a prompt holds, roles of turns left out."""
    turns = text.turns if isinstance(text, Conversation) else [{"content": text}]
    return [word for turn in turns for word in WORD.findall(turn["content"].lower())]


def of_organisms():
    """Prompts of the planted behaviours: ordinary ones, and ones with a trigger."""
    for kind in KINDS:
        for split in ("train", "test"):
            yield from (item.text for item in items(kind, split))
    for behaviour in BEHAVIOURS.values():
        for split in ("train", "test"):
            yield from (t for t, _ in behaviour.triggered(split, False, random.Random(0)))


def test_every_kind_has_one_prompt_two_of_them_held_out_twice():
    kinds = [prompt.kind for prompt in spread("screening")]
    assert len(kinds) == len(set(kinds)) >= 40
    assert [prompt.kind for prompt in spread("validation")] == kinds
    assert [prompt.kind for prompt in spread("held_out")] == kinds + kinds
    assert all(prompt.part == part for part in PARTS for prompt in spread(part))


def test_no_prompt_comes_twice():
    assert len({tuple(words(prompt.text)) for prompt in EVERY}) == len(EVERY)


def test_prompts_of_a_kind_differ_in_their_topic():
    # words of a form, such as "give me a", are shared by many prompts
    common = Counter(word for prompt in EVERY for word in set(words(prompt.text)))
    for one, other in combinations(EVERY, 2):
        if one.kind == other.kind:
            shared = set(words(one.text)) & set(words(other.text))
            rare = {w for w in shared if common[w] <= 3 and w not in words(one.kind)}
            assert len(rare) <= 2, (one.text, other.text, rare)


def test_prompts_have_a_readable_length():
    for prompt in EVERY:
        assert 3 <= len(words(prompt.text)) <= 60, prompt.text
    short, long = (
        [len(words(p.text)) for p in EVERY if p.kind == kind]
        for kind in ("very short", "long prompt")
    )
    assert max(short) <= 4
    assert min(long) >= 40


def test_prompts_are_disjoint_from_those_of_the_package_and_of_planted_behaviours():
    others = [*built_in.FIT, *built_in.VALIDATION, *built_in.HELD_OUT, *built_in.REFERENCE]
    planted = list(of_organisms())
    assert len(planted) > 1000
    taken = {tuple(words(text)) for text in (*others, *planted)}
    assert not [prompt.text for prompt in EVERY if tuple(words(prompt.text)) in taken]


def test_the_first_of_a_part_are_varied():
    for part in PARTS:
        first = spread(part)[:12]
        assert len({prompt.kind for prompt in first}) == 12
        assert any(isinstance(prompt.text, Conversation) for prompt in first)


def test_kinds_are_what_they_say():
    of = {kind: [p.text for p in EVERY if p.kind == kind] for kind in {p.kind for p in EVERY}}
    assert all(text.islower() for text in of["lower case"])
    assert all(text.isupper() for text in of["all capitals"])
    assert not any(re.search("[a-zA-Z]", text) for text in of["other script"])
    assert all(re.search(r"\d{4}", text) for text in of["date in front"])
    assert all(
        [turn["role"] for turn in text.turns] == ["system", "user"] for text in of["system message"]
    )
    assert all(len(text.turns) == 3 for text in of["several turns"])


@pytest.mark.parametrize("part", PARTS)
def test_conversations_can_be_left_out(part):
    plain = spread(part, conversations=False)
    assert plain == tuple(p for p in spread(part) if not isinstance(p.text, Conversation))
    assert 0 < len(spread(part)) - len(plain) == 2 * len(PLACES[part])


def test_the_file_is_a_file_of_prompts(request):
    path = request.config.rootpath / "melbo/models/text/spread.jsonl"
    assert sorted(read_texts(path)) == sorted(prompt.text for prompt in EVERY)
