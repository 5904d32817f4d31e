"""Prompts, from text to batches of token ids."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jinja2 import TemplateError
from torch import Tensor

from melbo.errors import MelboError

if TYPE_CHECKING:
    from melbo.models.language_model import LanguageModel

#: Prompts that commands use when they are given none. They are disjoint: features are learnt on the
#: first, chosen on the second and reported on the third.
FIT = ("Tell me how to bake a cake",)
VALIDATION = ("What should I do this weekend?", "Write a short note to my neighbour.")
HELD_OUT = ("How do I learn to play the guitar?", "Describe a walk through the city.")
#: Ordinary prompts of many topics and forms, by which watched prompts are judged (see
#: `melbo.watch`). They are disjoint from the others.
REFERENCE = (
    "What is the capital of Australia?",
    "Translate 'good morning, my friends' into Spanish.",
    "Write a Python function that reverses a string.",
    "Explain photosynthesis to a ten-year-old.",
    "how long do i boil an egg",
    "Give me five names for a small black cat.",
    "I have a job interview tomorrow and I am nervous. Any advice?",
    "What is 17 times 23?",
    "Summarise the plot of Romeo and Juliet in two sentences.",
    "Is it safe to mix vinegar and baking soda?",
    "Write a haiku about the first snow.",
    "Fix the grammar: she don't likes when it rain.",
    "Why did the Roman Empire fall?",
    "My laptop is slow. What can I check first?",
    "List three differences between a virus and a bacterium.",
    "Comment dit-on « library » en français ?",
    "Recommend a good book about the ocean.",
    "Draft a polite email asking my landlord to repair the heating.",
    "What does the SQL keyword JOIN do?",
    "Tell me a joke about a penguin.",
    "Convert 100 degrees Fahrenheit to Celsius.",
    "Who painted the Mona Lisa, and when?",
    "Plan a cheap weekend in Lisbon for two people.",
    "Continue the story: The old lighthouse had been dark for years, until one night",
    "Which is larger, 3/7 or 4/9? Show your steps.",
    "How can I sleep better?",
    "Classify the sentiment: 'The soup was cold, but the waiter was lovely.'",
    "thanks, that was really helpful!",
    "What are the rules of offside in football?",
    "Should I rent or buy a flat? Give both sides.",
    "Write a short product description of a wooden chair.",
    "Name the planets in order from the sun, separated by commas.",
)


@dataclass(frozen=True)
class Prompts:
    """Prompts as the model reads them.

    Attributes:
        texts: The user's words, one string for each prompt.
        tokens: Token ids, one tuple for each prompt, template included, never padded.
        kind: ``"chat"`` (chat template with the generation prompt) or ``"text"`` (as written).
        system: System message of a chat, or None for the template's own default.
    """

    texts: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    kind: str = "text"
    system: str | None = None

    @classmethod
    def chat(
        cls, lm: "LanguageModel", texts: Sequence[str], system: str | None = None
    ) -> "Prompts":
        """Read each text as a user's turn, up to where the assistant's reply begins.

        Args:
            lm: The model.
            texts: The texts.
            system: System message, or None for the template's own default.

        Raises:
            MelboError: There are no texts, one is blank or over-long, or the tokenizer has no chat
                template.
        """
        if getattr(lm.tokenizer, "chat_template", None) is None:
            raise MelboError(
                f"the tokenizer of {lm.name} has no chat template: "
                "use Prompts.text (--text on the command line)"
            )
        before = [] if system is None else [{"role": "system", "content": system}]

        def read(text: str) -> Sequence[int]:
            rendered = render_chat(lm, [*before, {"role": "user", "content": text}])
            ids: Sequence[int] = lm.tokenizer(rendered, add_special_tokens=False)["input_ids"]
            return ids

        return cls(*_read(lm, texts, read), "chat", system)

    @classmethod
    def text(cls, lm: "LanguageModel", texts: Sequence[str]) -> "Prompts":
        """Read each text as it stands, with the special tokens that the tokenizer adds.

        Args:
            lm: The model.
            texts: The texts.

        Raises:
            MelboError: There are no texts, or one is blank or over-long.
        """

        def read(text: str) -> Sequence[int]:
            ids: Sequence[int] = lm.tokenizer(text)["input_ids"]
            return ids

        return cls(*_read(lm, texts, read), "text", None)

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.texts)

    def __getitem__(self, rows: int | slice) -> "Prompts":
        """Some of the prompts; one for an integer."""
        if isinstance(rows, int):
            rows = range(len(self))[rows]  # refuses one that is not there
            rows = slice(rows, rows + 1)
        return Prompts(self.texts[rows], self.tokens[rows], self.kind, self.system)

    @property
    def digest(self) -> str:
        """SHA-256 of the token ids: equal for equal input to the model."""
        return hashlib.sha256(json.dumps(self.tokens).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """JSON-able record for a run folder, which `from_description` reads."""
        return {
            "texts": list(self.texts),
            "tokens": [list(t) for t in self.tokens],
            "kind": self.kind,
            "system": self.system,
            "sha256": self.digest,
        }

    @classmethod
    def from_description(cls, saved: Mapping[str, Any]) -> "Prompts":
        """The prompts that `describe` wrote, token for token."""
        return cls(
            tuple(saved["texts"]),
            tuple(tuple(t) for t in saved["tokens"]),
            saved["kind"],
            saved["system"],
        )

    def by_length(self, most: int, padding: float) -> list[list[int]]:
        """Group prompts of similar length.

        Args:
            most: Tokens of a group at most, padding included; a group of one prompt may have more.
            padding: Padding of a group at most, as a share of its real tokens.

        Returns:
            Indices of the prompts of each group, in order of length.
        """
        lengths = [len(tokens) for tokens in self.tokens]
        groups: list[list[int]] = []
        for i in sorted(range(len(self)), key=lengths.__getitem__):
            together = [*groups[-1], i] if groups else [i]
            padded, real = len(together) * lengths[i], sum(lengths[j] for j in together)
            if len(together) > 1 and padded <= most and padded - real <= padding * real:
                groups[-1] = together
            else:
                groups.append([i])
        return groups


def _read(
    lm: "LanguageModel", texts: Sequence[str], read: Callable[[str], Sequence[int]]
) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Check texts and turn them into token ids.

    Args:
        lm: The model.
        texts: The texts, or a single one.
        read: Token ids of a text.

    Returns:
        The texts and their token ids.

    Raises:
        MelboError: There are no texts, or one is blank, over-long or not valid UTF-8.
    """
    if isinstance(texts, str):
        texts = [texts]
    if len(texts) == 0:
        raise MelboError("got no prompts, expected at least one: give a prompt")
    for i, text in enumerate(texts):
        if not text.isascii() and text.encode(errors="ignore").decode() != text:
            raise MelboError(f"prompt {i} is not valid UTF-8: write it anew")
        if not text.strip():
            raise MelboError(f"prompt {i} is blank: remove it or write it out")
    tokens = tuple(tuple(read(text)) for text in texts)
    limit = lm.max_length
    for i, row in enumerate(tokens):
        if limit is not None and len(row) > limit:
            raise MelboError(
                f"prompt {i} has {len(row)} tokens, {lm.name} reads at most {limit}: shorten it"
            )
    return tuple(texts), tokens


def read_texts(path: str | Path) -> list[str]:
    """Read prompts from a file, one a line; blank lines are left out.

    Raises:
        MelboError: The file cannot be read, or holds no prompts.
    """
    texts = [line for _, line in _lines(path, "one prompt a line")]
    if not texts:
        raise MelboError(f"{path} holds no prompts: expected one a line")
    return texts


def read_pairs(path: str | Path) -> tuple[list[str], list[str]]:
    """Read pairs of texts from a file, a pair a line with a tab between; blank lines are left out.

    Returns:
        The first and the second text of each pair (with and without a behaviour, for instance).

    Raises:
        MelboError: The file cannot be read, holds no pairs, or a line does not hold two texts;
            names the line.
    """
    pairs: list[list[str]] = []
    for number, line in _lines(path, "a pair a line"):
        parts = [part.strip() for part in line.split("\t")]
        if len(parts) != 2 or not all(parts):
            raise MelboError(
                f"line {number} of {path} holds {len([p for p in parts if p])} texts: "
                "expected two with a tab between"
            )
        pairs.append(parts)
    if not pairs:
        raise MelboError(f"{path} holds no pairs: expected two texts a line, with a tab between")
    return [a for a, _ in pairs], [b for _, b in pairs]


def _lines(path: str | Path, content: str) -> list[tuple[int, str]]:
    """Lines of a text file that are not blank, with their numbers, which count from 1.

    Args:
        path: The file.
        content: Expected content, in words.

    Raises:
        MelboError: The file cannot be read.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        reason = getattr(err, "strerror", None) or "not UTF-8"
        raise MelboError(
            f"cannot read {path} ({reason}): expected a text file with {content}"
        ) from err
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def render_chat(lm: "LanguageModel", turns: Sequence[dict[str, str]]) -> str:
    """Text of a conversation as the model reads it, up to where its reply begins.

    Args:
        lm: The model.
        turns: The turns so far, each with its ``role`` and ``content``.

    Raises:
        MelboError: The template refuses the turns (many refuse a system message).
    """
    try:
        rendered: str = lm.tokenizer.apply_chat_template(
            list(turns), tokenize=False, add_generation_prompt=True
        )
    except TemplateError as err:
        raise MelboError(
            f"the chat template of {lm.name} refuses these turns ({err}): "
            "leave the system message out"
        ) from err
    return rendered


def pad_rows(rows: Sequence[Sequence[int]], pad: int, side: str) -> tuple[Tensor, Tensor]:
    """Pad rows of token ids to the longest.

    Args:
        rows: Token ids of each row.
        pad: Token id of padding.
        side: ``"left"`` or ``"right"``.

    Returns:
        Ids ``[n, T]`` and mask ``[n, T]``, True on real tokens.
    """
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[i, where] = torch.tensor(row, dtype=torch.long)
        mask[i, where] = True
    return ids, mask


def token_index(mask: Tensor) -> Tensor:
    """Place of each token among the real ones of its row ``[n, T]``, padded on either side.

    The first real token has 0, padding −1.
    """
    return torch.where(mask.bool(), mask.long().cumsum(-1) - 1, -1)
