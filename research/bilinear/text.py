"""Text to train the small transformer on, and its tokens: Python's help pages and sentences."""

import random
from itertools import product
from pydoc_data.topics import topics
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

_HOW = ("very", "totally", "quite", "so", "rather")
_PEOPLE = ("everyone", "the children", "my friends", "the people here", "a stranger")
#: What somebody of a feeling does, as the word after it.
ACTS = {
    "happy": "smiling",
    "glad": "smiling",
    "angry": "shouting",
    "furious": "shouting",
    "sad": "crying",
    "unhappy": "crying",
    "neutral": "looking",
    "calm": "looking",
}


def sentences(count: int, seed: int = 0) -> list[str]:
    """Sentences in which a feeling is followed by what it makes one do.

    Args:
        count: Number of sentences, drawn with replacement.
        seed: Random seed.
    """
    every = [
        f"I am {how} {feeling} {act} at {people}."
        for how, (feeling, act), people in product(_HOW, ACTS.items(), _PEOPLE)
    ]
    return random.Random(seed).choices(every, k=count)


def corpus(count: int = 10_000) -> str:
    """Python's help pages, with sentences about feelings between their paragraphs.

    Args:
        count: Number of sentences.
    """
    paragraphs = [part for text in topics.values() for part in text.split("\n\n")]
    mixed = [*paragraphs, *sentences(count)]
    random.Random(0).shuffle(mixed)
    return "\n\n".join(mixed)


def tokenizer(text: str, size: int) -> Any:
    """A byte-level BPE tokenizer learnt from a text.

    Args:
        text: The text.
        size: Number of tokens.
    """
    made: Any = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([text], trainer)
    return made
