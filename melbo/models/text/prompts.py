"""Prompts, from text to batches of token ids."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from melbo.errors import MelboError, require
from melbo.models.text.chat_template import check_arguments, template_of
from melbo.models.text.chat_template import render_chat as render_chat
from melbo.models.text.conversation import Conversation, Turn, check_unicode
from melbo.models.text.prompt_files import read_pairs as read_pairs
from melbo.models.text.prompt_files import read_texts as read_texts

if TYPE_CHECKING:
    from melbo.models.language_model import LanguageModel


@dataclass(frozen=True)
class Prompts:
    """Prompts as the model reads them.

    Attributes:
        texts: The user's words, one string for each prompt; all turns of a `Conversation`.
        tokens: Token ids, one tuple for each prompt, template included, never padded.
        kind: ``"chat"`` (chat template with the generation prompt) or ``"text"`` (as written).
        system: System message of a chat, or None for the template's own default.
        template: Chat template, by name or written out; None for the tokenizer's default one.
        template_args: Arguments of the chat template, or None.
        prefix: Beginning of the assistant's reply, which the prompts end with, or None.
    """

    texts: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    kind: str = "text"
    system: str | None = None
    template: str | None = None
    template_args: Mapping[str, Any] | None = field(default=None, hash=False)
    prefix: str | None = None

    @classmethod
    def chat(
        cls,
        lm: "LanguageModel",
        texts: Sequence[str | Sequence[Turn]],
        system: str | None = None,
        template: str | None = None,
        template_args: Mapping[str, Any] | None = None,
        prefix: str | None = None,
    ) -> "Prompts":
        """Read each text as a user's turn, up to where the assistant's reply begins.

        What comes out of the template is tokenised as a whole. So a text that imitates the
        template's control tokens (``<|im_end|>``, say) ends a turn, as it does in every program
        that reads prompts this way.

        Args:
            lm: The model.
            texts: The texts. One may be a list of turns, each with its ``role`` and ``content``; an
                assistant's turn at the end is the beginning of the reply.
            system: System message of all prompts that do not bring one of their own, or None for
                the template's own default.
            template: Name of one of the tokenizer's chat templates, or a template itself; None for
                the default one.
            template_args: Arguments of the template, such as ``{"enable_thinking": False}``.
            prefix: Beginning of the assistant's reply, where a prompt brings none of its own.

        Raises:
            MelboError: There are no texts; one is blank, over-long, or nothing that the tokenizer
                knows; the tokenizer has no such chat template, or the template has no such
                argument, fails, or leaves a message out; a token has no embedding, or white space
                at an end of the prefix has no token.
        """
        arguments = check_arguments(lm, template_of(lm, template), template_args)
        for name, extra in (("the system message", system), ("the prefix", prefix)):
            if extra is not None:
                check_unicode(extra, name)
        form = cls((), (), "chat", system, template, arguments or None, prefix or None)

        def read(asked: str) -> Sequence[int]:
            return form._ids(lm, _turns_of(asked))

        asked, tokens = _read(lm, texts, read)
        return replace(form, texts=asked, tokens=tokens)

    @classmethod
    def text(cls, lm: "LanguageModel", texts: Sequence[str | Sequence[Turn]]) -> "Prompts":
        """Read each text as it stands, with the special tokens that the tokenizer adds.

        Special tokens that are written out in a text are read as such.

        Args:
            lm: The model.
            texts: The texts.

        Raises:
            MelboError: There are no texts; one is blank, over-long, a conversation, or nothing that
                the tokenizer knows; a token has no embedding.
        """

        def read(text: str) -> Sequence[int]:
            if isinstance(text, Conversation):
                raise MelboError(
                    f"the prompt {text[:40]!r} has turns, which a chat template reads: "
                    "use Prompts.chat (no --text on the command line)"
                )
            ids: Sequence[int] = lm.tokenizer(text)["input_ids"]
            return ids

        return cls(*_read(lm, texts, read), "text", None)

    def like(self, lm: "LanguageModel", texts: Sequence[str | Sequence[Turn]]) -> "Prompts":
        """Read other texts as these prompts were read.

        Args:
            lm: The model.
            texts: The texts, as `chat` and `text` take them.

        Raises:
            MelboError: As `chat` and `text`.
        """
        if self.kind == "text":
            return Prompts.text(lm, texts)
        return Prompts.chat(lm, texts, self.system, self.template, self.template_args, self.prefix)

    def render(self, lm: "LanguageModel", turns: Sequence[Turn]) -> str:
        """Text of a conversation with these prompts' system message, template and prefix.

        Args:
            lm: The model.
            turns: The turns so far. A system message of their own, or an assistant's turn at the
                end, takes the place of the common one.

        Raises:
            MelboError: As `chat`, for the template.
        """
        if self.system is not None and turns[0]["role"] != "system":
            turns = [{"role": "system", "content": self.system}, *turns]
        return render_chat(lm, turns, self.template, self.template_args, self.prefix)

    def conversation(self, lm: "LanguageModel", turns: Sequence[Turn]) -> list[int]:
        """Token ids of a conversation that goes on, read as `chat` reads one.

        Args:
            lm: The model.
            turns: The turns so far; a reply among them may be empty.

        Raises:
            MelboError: As `chat`.
        """
        ids = self._ids(lm, turns)
        _check_tokens(lm, "this conversation", [turn["content"] for turn in turns], ids)
        return ids

    def _ids(self, lm: "LanguageModel", turns: Sequence[Turn]) -> list[int]:
        """Token ids of a conversation.

        Raises:
            MelboError: As `chat`, for the template and the prefix.
        """
        rendered = self.render(lm, turns)
        own = turns[-1]["content"] if turns[-1]["role"] == "assistant" else self.prefix
        return _ids_of(lm, rendered, own or "")

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.texts)

    def __getitem__(self, rows: int | slice) -> "Prompts":
        """Some of the prompts; one for an integer."""
        if isinstance(rows, int):
            rows = range(len(self))[rows]  # refuses one that is not there
            rows = slice(rows, rows + 1)
        return replace(self, texts=self.texts[rows], tokens=self.tokens[rows])

    @property
    def digest(self) -> str:
        """SHA-256 of the token ids: equal for equal input to the model."""
        return hashlib.sha256(json.dumps(self.tokens).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """JSON-able record for a run folder, which `from_description` reads."""
        more = {name: getattr(self, name) for name in ("template", "template_args", "prefix")}
        return {
            "texts": [str(text) for text in self.texts],
            "tokens": [list(t) for t in self.tokens],
            "kind": self.kind,
            "system": self.system,
            **{name: value for name, value in more.items() if value is not None},
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
            # kept where they are given
            saved.get("template"),
            saved.get("template_args"),
            saved.get("prefix"),
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


def require_prompts(**given: object) -> None:
    """Refuse texts that have not been read as prompts.

    Args:
        given: Values of the arguments by their names.
    """
    require(Prompts, "read texts by melbo.Prompts.chat(lm, texts) or .text(lm, texts)", **given)


def _ids_of(lm: "LanguageModel", rendered: str, prefix: str) -> list[int]:
    """Token ids of a rendered chat.

    Args:
        lm: The model.
        rendered: The chat.
        prefix: Beginning of the reply, with which it ends.

    Raises:
        MelboError: White space at an end of the prefix is in no token: some tokenizers swallow it
            beside their control tokens.
    """

    def ids_of(text: str) -> list[int]:
        return list(lm.tokenizer(text, add_special_tokens=False)["input_ids"])

    found, before = ids_of(rendered), rendered[: len(rendered) - len(prefix)]
    for end, less in (("begins", prefix[1:]), ("ends", prefix[:-1])):
        lost = prefix[:1] if end == "begins" else prefix[-1:]
        if lost.isspace() and ids_of(before + less) == found:
            raise MelboError(
                f"the prefix {end} with {lost!r}, which the tokenizer of {lm.name} swallows there: "
                "leave it out"
            )
    return found


def _read(
    lm: "LanguageModel",
    texts: Sequence[str | Sequence[Turn]],
    read: Callable[[str], Sequence[int]],
) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Check texts and turn them into token ids.

    Args:
        lm: The model.
        texts: The texts and conversations, or a single one.
        read: Token ids of a text.

    Returns:
        The texts and their token ids.

    Raises:
        MelboError: There are no texts, or one is blank, over-long, not valid UTF-8, or nothing that
            the tokenizer knows; a token has no embedding.
    """
    if isinstance(texts, str):
        texts = [texts]
    if len(texts) == 0:
        raise MelboError("got no prompts, expected at least one: give a prompt")
    if isinstance(texts[0], Mapping):
        texts = [cast("Sequence[Turn]", texts)]
    asked: list[str] = []
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            text = Conversation(text, f"prompt {i}")
        check_unicode(text, f"prompt {i}")
        if not text.strip():
            raise MelboError(f"prompt {i} is blank: remove it or write it out")
        asked.append(text)
    tokens = tuple(tuple(read(text)) for text in asked)
    for i, (text, row) in enumerate(zip(asked, tokens, strict=True)):
        said = [turn["content"] for turn in _turns_of(text)]
        _check_tokens(lm, f"prompt {i}", said, row)
    return tuple(asked), tokens


def _turns_of(text: str) -> Sequence[Turn]:
    """Turns of a prompt."""
    if isinstance(text, Conversation):
        return text.turns
    return [{"role": "user", "content": text}]


def _check_tokens(
    lm: "LanguageModel", where: str, messages: Sequence[str], row: Sequence[int]
) -> None:
    """Check the token ids of a prompt.

    Args:
        lm: The model.
        where: The prompt, in words, for messages of errors.
        messages: All that is said in it.
        row: Its token ids.

    Raises:
        MelboError: There are too many, a message has none, or one has no embedding.
    """
    for said in messages:
        if not said.strip():
            continue
        if not row or not lm.tokenizer(said, add_special_tokens=False)["input_ids"]:
            raise MelboError(
                f"the tokenizer of {lm.name} makes no tokens of {said[:40]!r} ({where}): "
                "remove it, or load the tokenizer that belongs to the model"
            )
    if lm.max_length is not None and len(row) > lm.max_length:
        raise MelboError(
            f"{where} has {len(row)} tokens, {lm.name} reads at most {lm.max_length}: shorten it"
        )
    rows = embedding_rows(lm)
    if rows is not None and max(row) >= rows:
        raise MelboError(
            f"{where} holds the token {lm.tokenizer.convert_ids_to_tokens(max(row))!r} "
            f"(id {max(row)}), but {lm.name} has embeddings for ids 0 to {rows - 1}: load the "
            "tokenizer that belongs to it, or call model.resize_token_embeddings"
        )


def embedding_rows(lm: "LanguageModel") -> int | None:
    """Number of token ids that a model has an embedding for; None where that cannot be told."""
    table = lm.model.get_input_embeddings()
    weight = getattr(table, "weight", None)
    if isinstance(weight, Tensor) and weight.ndim == 2 and weight.is_floating_point():
        return len(weight)
    rows = getattr(table, "num_embeddings", None)  # of packed weights
    return rows if isinstance(rows, int) else None


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
