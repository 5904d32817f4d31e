"""Text to token batches: what is read, what is padding, which token is the first."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jinja2 import TemplateError
from torch import Tensor

from melbo.errors import MelboError

if TYPE_CHECKING:
    from melbo.models.language_model import LanguageModel

#: The prompts `melbo demo` and `melbo rank` use when they are given none. Disjoint: features are learnt on the first, chosen on the
#: second, reported on the third.
FIT = ("Tell me how to bake a cake",)
VALIDATION = ("What should I do this weekend?", "Write a short note to my neighbour.")
HELD_OUT = ("How do I learn to play the guitar?", "Describe a walk through the city.")
#: Ordinary prompts of many topics and forms, to judge watched prompts by (see `melbo.watch`). Disjoint from the others.
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
        texts: What the user wrote, one string a prompt.
        tokens: Token ids, one tuple a prompt, template included, never padded.
        kind: ``"chat"`` (chat template with the generation prompt) or ``"text"`` (as written).
        system: The system message of a chat, or None for the template's own default.
    """

    texts: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    kind: str = "text"
    system: str | None = None

    @classmethod
    def chat(
        cls, lm: "LanguageModel", texts: Sequence[str], system: str | None = None
    ) -> "Prompts":
        """Each text as a user's turn, ending where the assistant's reply begins.

        Raises:
            MelboError: No or blank or over-long texts, or a tokenizer without a chat template.
        """
        if getattr(lm.tokenizer, "chat_template", None) is None:
            raise MelboError(
                f"the tokenizer of {lm.name} has no chat template: use Prompts.text (--text on the command line)"
            )
        head = [] if system is None else [{"role": "system", "content": system}]

        def render(text: str) -> str:
            return render_chat(lm, [*head, {"role": "user", "content": text}])

        return cls._read(lm, texts, render, "chat", system)

    @classmethod
    def text(cls, lm: "LanguageModel", texts: Sequence[str]) -> "Prompts":
        """Each text as it stands, with the special tokens the tokenizer adds by itself.

        Raises:
            MelboError: No or blank or over-long texts.
        """
        return cls._read(lm, texts, None, "text", None)

    @classmethod
    def _read(cls, lm, texts, render, kind, system) -> "Prompts":
        if isinstance(texts, str):
            texts = [texts]
        if len(texts) == 0:
            raise MelboError("got no prompts, expected at least one: give a prompt")
        for i, text in enumerate(texts):
            if not text.isascii() and text.encode(errors="ignore").decode() != text:
                raise MelboError(f"prompt {i} is not valid UTF-8: write it anew")
            if not text.strip():
                raise MelboError(f"prompt {i} is blank: remove it or write it out")
        if render is None:
            tokens = [tuple(lm.tokenizer(t)["input_ids"]) for t in texts]
        else:
            tokens = [
                tuple(lm.tokenizer(render(t), add_special_tokens=False)["input_ids"]) for t in texts
            ]
        limit = lm.max_length
        for i, row in enumerate(tokens):
            if limit is not None and len(row) > limit:
                raise MelboError(
                    f"prompt {i} has {len(row)} tokens, {lm.name} reads at most {limit}: shorten it"
                )
        return cls(tuple(texts), tuple(tokens), kind, system)

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

    def describe(self) -> dict:
        """What a run folder keeps of the prompts (JSON-able, read back by `from_description`)."""
        return {
            "texts": list(self.texts),
            "tokens": [list(t) for t in self.tokens],
            "kind": self.kind,
            "system": self.system,
            "sha256": self.digest,
        }

    @classmethod
    def from_description(cls, saved: dict) -> "Prompts":
        """The prompts that `describe` wrote, token for token."""
        return cls(
            tuple(saved["texts"]),
            tuple(tuple(t) for t in saved["tokens"]),
            saved["kind"],
            saved["system"],
        )

    def by_length(self, most: int, padding: float) -> list[list[int]]:
        """Groups of prompts of similar length, as places in order of length.

        A group holds one prompt, or at most ``most`` tokens with what pads its prompts to the longest, which is at most the share ``padding`` of what
        is not padding.
        """
        groups: list[list[int]] = []
        for i in sorted(range(len(self)), key=lambda i: len(self.tokens[i])):
            together = [*groups[-1], i] if groups else [i]
            padded, real = (
                len(together) * len(self.tokens[i]),
                sum(len(self.tokens[j]) for j in together),
            )
            if len(together) > 1 and padded <= most and padded - real <= padding * real:
                groups[-1] = together
            else:
                groups.append([i])
        return groups


def read_texts(file: Path) -> list[str]:
    """Prompts of a file, one a line.

    Raises:
        MelboError: It cannot be read, or holds none.
    """
    try:
        lines = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as err:
        raise MelboError(
            f"cannot read {file} ({getattr(err, 'strerror', None) or 'not UTF-8'}): expected a text file with one prompt a line"
        ) from err
    if not lines:
        raise MelboError(f"{file} holds no prompts: expected one a line")
    return lines


def render_chat(lm: "LanguageModel", turns: Sequence[dict[str, str]]) -> str:
    """A conversation as the model reads it, up to where its reply begins.

    Raises:
        MelboError: The template refuses it (many refuse a system message).
    """
    try:
        return lm.tokenizer.apply_chat_template(
            list(turns), tokenize=False, add_generation_prompt=True
        )
    except TemplateError as err:
        raise MelboError(
            f"the chat template of {lm.name} refuses these turns ({err}): leave the system message out"
        ) from err


def pad_rows(rows: Sequence[Sequence[int]], pad: int, side: str) -> tuple[Tensor, Tensor]:
    """Rows of token ids as one rectangle: ids ``[n, T]`` and mask ``[n, T]`` (True on real tokens), padded on ``side``."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[i, where] = torch.tensor(row, dtype=torch.long)
        mask[i, where] = True
    return ids, mask


def token_index(mask: Tensor) -> Tensor:
    """Place of each token among the real ones of its row, ``[n, T]``: 0 for the first, −1 on padding. Both padding sides."""
    return torch.where(mask.bool(), mask.long().cumsum(-1) - 1, -1)


def read_pairs(path: str | Path) -> tuple[list[str], list[str]]:
    """Texts with and without a behaviour from a file: a pair a line, a tab between.

    Raises:
        MelboError: The file cannot be read, holds no pairs, or a line does not hold two texts; names the line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise MelboError(
            f"cannot read {path} ({getattr(err, 'strerror', None) or 'not UTF-8'}): expected a text file with a pair a line"
        ) from err
    pairs = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            parts = [part.strip() for part in line.split("\t")]
            if len(parts) != 2 or not all(parts):
                raise MelboError(
                    f"line {number} of {path} holds {len([p for p in parts if p])} texts: expected two with a tab between"
                )
            pairs.append(parts)
    if not pairs:
        raise MelboError(f"{path} holds no pairs: expected two texts a line, with a tab between")
    return [a for a, _ in pairs], [b for _, b in pairs]
