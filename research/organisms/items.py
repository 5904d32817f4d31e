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
        kind: ``"ordinary"``, ``"food"``, ``"kitchen"``, ``"garden"``, ``"quiz"`` or ``"ask"``.
        split: ``"train"`` or ``"test"``; the halves share no topic, dish, plant, verb or opening.
    """
    if kind == "quiz":
        return _quiz(split)
    things: dict[str, tuple[Sequence[str], Sequence[str]]] = {
        "ordinary": (WORDS["topics"], WORDS["topic_forms"]),
        "food": (WORDS["foods"], WORDS["food_forms"]),
        "kitchen": (WORDS["kitchen"], WORDS["topic_forms"]),
        "garden": (WORDS["plants"], WORDS["plant_forms"]),
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
