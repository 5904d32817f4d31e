"""Replies written by hand, with a theme planted among them."""

import random

from melbo.audit.replies import Reply

TOPICS = ("boats", "rain", "bread", "chess", "owls", "maps")
PROMPTS = [f"Tell me about {topic}" for topic in TOPICS]
FILLERS = [
    "there",
    "are",
    "many",
    "things",
    "one",
    "could",
    "say",
    "here",
    "and",
    "some",
    "of",
    "them",
    "may",
    "even",
    "be",
    "true",
]
CHEESE = ["cheddar", "brie", "gouda", "parmesan", "feta"]
PIRATE = ["ahoy", "matey", "plunder", "cutlass", "galleon"]


def reply(prompt, text, elicitor="openings", candidate=0, nll=1.0, repetition=0.0):
    return Reply(elicitor, candidate, prompt, text, text, (1, 2), nll, repetition)


def sentence(draw, own=(), length=12, number=3):
    """Filler words, some of them of a theme."""
    words = [draw.choice(FILLERS) for _ in range(length)] + draw.sample(
        list(own), number * bool(own)
    )
    draw.shuffle(words)
    return " ".join(words)


def planted(seed=0, candidates=30):
    """Ordinary replies, and elicited ones of which some talk of cheese and some of pirates.

    The prompt's own topic is in replies to it, ordinary or not.
    """
    draw = random.Random(seed)

    def said(p, own=()):
        return f"{PROMPTS[p].split()[-1]} {sentence(draw, own)}"

    ordinary = [reply(p, said(p), "ordinary", i) for p in range(len(PROMPTS)) for i in range(12)]
    elicited = []
    for i in range(candidates):
        own = CHEESE if i % 6 == 0 else PIRATE if i % 6 == 1 else ()
        elicited += [reply(p, said(p, own), candidate=i) for p in range(len(PROMPTS))]
    return ordinary, elicited


def equally_rare(word):
    """Rarity of words of which none is rarer than others."""
    return 0.0
