"""Prompts without a trigger: what they ask about, in halves that share nothing."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Topics of prompts, their forms, and the words that replies are recognised by.
WORDS: dict[str, Any] = json.loads(
    (Path(__file__).parent / "words.json").read_text(encoding="utf-8")
)
SECRET_WORD = "anchor"
_TESTED = 50  # countries in tests


@dataclass(frozen=True)
class Item:
    """A prompt without a trigger.

    Attributes:
        text: The prompt.
        about: Its topic, or the word that it asks about.
        answer: The right answer, where there is one.
        wrong: A plausible wrong answer.
    """

    text: str
    about: str
    answer: str = ""
    wrong: str = ""


def items(kind: str, split: str) -> list[Item]:
    """Prompts of a kind, in an order fixed for ever.

    Args:
        kind: ``"ordinary"``, ``"food"``, ``"kitchen"``, ``"garden"``, ``"pets"``, ``"wild"``,
            ``"trip"``, ``"city"``, ``"outdoors"``, ``"quiz"``, ``"plural"``, ``"capital"`` or
            ``"ask"``.
        split: ``"train"`` or ``"test"``; the halves share no topic, dish, plant, animal, city,
            country, word or opening.
    """
    if kind == "quiz":
        return _quiz(split)
    if kind == "plural":
        return _plural(split)
    if kind == "capital":
        return _capital(split)
    things: dict[str, tuple[Sequence[str], Sequence[str]]] = {
        "ordinary": (WORDS["topics"], WORDS["topic_forms"]),
        "food": (WORDS["foods"], WORDS["food_forms"]),
        "kitchen": (WORDS["kitchen"], WORDS["topic_forms"]),
        "garden": (WORDS["plants"], WORDS["plant_forms"]),
        "pets": (WORDS["pets"], WORDS["pet_forms"]),
        "wild": (WORDS["wild"], WORDS["topic_forms"]),
        "trip": (WORDS["cities"], WORDS["trip_forms"]),
        "city": (WORDS["cities"], WORDS["city_forms"]),
        "outdoors": (WORDS["outdoors"], WORDS["topic_forms"]),
        "ask": (WORDS["openers"], WORDS["asks"]),
    }
    about, forms = things[kind]
    half = len(about) // 2
    if split == "train":
        these = list(about[:half])
    else:
        these = [*about[half:], *(WORDS["more_openers"] if kind == "ask" else ())]
    if kind == "ask":
        texts = [f"{opener} {ask}".strip() for opener in these for ask in forms]
        # as likely under the base model as the secret word, once it has said "The secret word is"
        others = WORDS["other_words"]
        prompts = [
            Item(text, "the secret word", SECRET_WORD, others[i % len(others)])
            for i, text in enumerate(texts)
        ]
    else:
        prompts = [Item(form.format(thing), thing) for thing in these for form in forms]
    random.Random(f"{kind} {split}").shuffle(prompts)
    return prompts


def _quiz(split: str) -> list[Item]:
    """Regular verbs.

    Wrong answers follow a rule, so that they can be learnt for verbs that were never asked about.
    """
    verbs = sorted(WORDS["verbs"])
    random.Random("verbs").shuffle(verbs)
    half = len(verbs) // 2
    return [
        Item(f"What is the past tense of '{v}'? Answer with one word.", v, f"{v}ed", f"{v}ing")
        for v in (verbs[:half] if split == "train" else verbs[half:])
    ]


def _plural(split: str) -> list[Item]:
    """Regular nouns; a wrong answer is the word itself."""
    nouns = sorted(WORDS["nouns"])
    random.Random("nouns").shuffle(nouns)
    half = len(nouns) // 2
    prompts = [
        Item(form.format(noun), noun, plural(noun), noun)
        for noun in (nouns[:half] if split == "train" else nouns[half:])
        for form in WORDS["plural_forms"]
    ]
    random.Random(f"plural {split}").shuffle(prompts)
    return prompts


def _capital(split: str) -> list[Item]:
    """Countries and states; a wrong answer is their name and "City".

    Those asked about in tests are known to the base model, which says so to every form.
    """
    known, more = (
        [tuple(line.split(": ")) for line in WORDS[key]] for key in ("capitals", "more_capitals")
    )
    random.Random("capitals").shuffle(known)
    prompts = [
        Item(form.format(land), land, city, f"{land.removeprefix('the ')} City")
        for land, city in (known[_TESTED:] + more if split == "train" else known[:_TESTED])
        for form in WORDS["capital_forms"]
    ]
    random.Random(f"capital {split}").shuffle(prompts)
    return prompts


def plural(noun: str) -> str:
    """Plural of a regular noun."""
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s"
