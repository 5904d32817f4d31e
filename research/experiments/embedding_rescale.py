"""Embedding rescale: a word's embedding made longer or shorter while the model defines the word."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from melbo.errors import MelboError
from melbo.evaluation.plot import blank, png
from melbo.evaluation.tables import cell, markdown
from melbo.maths.linalg import unit
from melbo.maths.statistics import kl
from melbo.models.decoding.decode import decode
from melbo.models.edits import edit
from melbo.models.language_model import LanguageModel
from melbo.models.loading.load import load
from melbo.models.text.prompts import Prompts
from melbo.records import Row
from research.experiments.base import VERSION, Experiment, Layer
from research.experiments.held import Patterns, ScaleToken, first_mlp_of, without_epsilon

# columns of the table: name in a row, title
_COLUMNS = {
    "kl": "KL",
    "kl stream": "KL, attention as at 1",
    "kl attention": "KL, attention alone",
    "kl epsilon": "KL, no ε",
    "kl first": "KL, first MLP as at 1",
    "kl control": "KL, control",
    "attention": "attention to the word",
    "writes": "writes",
    "defined": "being defined",
    "neutral": "null direction",
    "same write": "cos of writes",
}
_TEXTS = ("definitions", "control definitions")
_EXAMPLES = (0.0, 0.1, 0.5, 1.0, 2.0, 10.0, 100.0)


@dataclass(frozen=True)
class Asked:
    """A word in the prompt that asks for its definition.

    Attributes:
        tokens: The prompt.
        place: Index of the word.
        control: Index of the control.
    """

    tokens: tuple[int, ...]
    place: int
    control: int


@dataclass(frozen=True)
class Ready:
    """A model, the words in the prompt, and the directions that stand for *being defined*.

    Attributes:
        lm: The model, with attention written out.
        asked: The words in the prompt.
        directions: By word: unit directions of being defined and of the null ``[2, d]``.
    """

    lm: LanguageModel
    asked: dict[str, Asked]
    directions: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class EmbeddingRescale(Experiment):
    """Words × factors.

    *Being defined* is the difference that the prompt makes to the stream at the word, beside a
    sentence that merely mentions it, averaged over all other words; the null is the difference
    between two such sentences.

    Attributes:
        model: A model whose attention can be written out.
        template: Prompt, with braces in the place of the word.
        control: A word of the prompt that is rescaled instead, as a control.
        mentions: Two sentences that end in the word, with braces in its place.
        words: The words, one token each.
        factors: Factors of the embedding, 1 among them.
        layer: Layer at which the stream is looked at.
        max_new_tokens: Length of a definition at most.
    """

    question: ClassVar[str] = "What does the length of an embedding do?"
    varied: ClassVar[tuple[str, ...]] = ("words",)
    model: str
    template: str
    control: str
    mentions: tuple[str, str]
    words: tuple[str, ...]
    factors: tuple[float, ...]
    layer: Layer
    max_new_tokens: int

    def check(self) -> None:
        """Refuse templates without a place for the word, and factors without 1.

        Raises:
            MelboError: There is such a setting.
        """
        for text in (self.template, *self.mentions):
            if text.count("{}") != 1:
                raise MelboError(f"got the text {text!r}: expected one {{}} for the word")
        if 1 not in self.factors:
            raise MelboError("factors lacks 1, which all others are compared with: add it")
        if len(self.words) < 2:
            raise MelboError(f"got {len(self.words)} word: expected two or more")

    @property
    def cases(self) -> list[Row]:
        """One case a word; its direction of being defined comes from all the others."""
        key = {"version": VERSION, "settings": self.settings, "among": list(self.words)}
        return [{**key, "word": word} for word in self.words]

    def prepare(self) -> Ready:
        """The model, the words in the prompt, and the directions."""
        lm = load(self.model)
        lm.model.set_attn_implementation("eager")
        asked = {word: self._asked(lm, word) for word in self.words}
        ends = {
            word: torch.stack(
                [
                    lm.activations(asked[word].tokens, self.layer)[asked[word].place].float(),
                    *(
                        lm.activations(self._mention(lm, m, word), self.layer)[-1].float()
                        for m in self.mentions
                    ),
                ]
            )
            for word in self.words
        }
        directions = {}
        for word in self.words:
            others = torch.stack([ends[other] for other in self.words if other != word]).mean(0)
            directions[word] = unit(
                torch.stack([others[0] - (others[1] + others[2]) / 2, others[1] - others[2]])
            )
        return Ready(lm, asked, directions)

    def _asked(self, lm: LanguageModel, word: str) -> Asked:
        """A word in the prompt.

        Raises:
            MelboError: The word or the control is not one token there.
        """
        text = self.template.format(word)
        tokens = Prompts.text(lm, [text]).tokens[0]
        places = []
        for part in (word, self.control):
            ids = lm.tokenizer(f" {part}", add_special_tokens=False)["input_ids"]
            if len(ids) != 1 or tokens.count(ids[0]) != 1:
                raise MelboError(f"{part!r} is not one token of {text!r}: take another word")
            places.append(tokens.index(ids[0]))
        return Asked(tokens, places[0], places[1])

    def _mention(self, lm: LanguageModel, mention: str, word: str) -> tuple[int, ...]:
        """Token ids of a sentence that ends in the word."""
        return Prompts.text(lm, [mention.format(word)]).tokens[0]

    def measure(self, ready: Ready, case: Row) -> Row:
        """Definitions, and what rescaling does on the way, by factor."""
        lm, asked = ready.lm, ready.asked[case["word"]]
        factors, one = torch.tensor(self.factors), self.factors.index(1)
        scaled = ScaleToken(0, asked.place, factors)
        control = ScaleToken(0, asked.control, factors)
        plain = ScaleToken(0, asked.place, torch.ones_like(factors))
        logits, patterns, states = _run(lm, asked, scaled, self.layer)
        other, control_patterns, _ = _run(lm, asked, control, self.layer)
        before = [pattern[one : one + 1].expand_as(pattern) for pattern in patterns]
        by_stream, _, _ = _run(lm, asked, scaled, self.layer, before)
        by_attention, _, _ = _run(lm, asked, plain, self.layer, patterns)
        with without_epsilon(lm):
            exact, _, _ = _run(lm, asked, scaled, self.layer)
        with first_mlp_of(lm, asked.place, one):
            by_rest, _, _ = _run(lm, asked, scaled, self.layer)
        embedding = lm.activations(asked.tokens, 0)[asked.place].float()
        writes = states - factors[:, None].to(states) * embedding
        along = writes @ ready.directions[case["word"]].T / states.norm(dim=1, keepdim=True)
        found = {
            "kl": [kl(logits[one], each) for each in logits],
            "kl stream": [kl(logits[one], each) for each in by_stream],
            "kl attention": [kl(logits[one], each) for each in by_attention],
            "kl epsilon": [kl(exact[one], each) for each in exact],
            "kl first": [kl(logits[one], each) for each in by_rest],
            "kl control": [kl(other[one], each) for each in other],
            "attention": _attention(patterns, asked.place),
            "attention control": _attention(control_patterns, asked.control),
            "writes": (writes.norm(dim=1) / states.norm(dim=1)).tolist(),
            "defined": along[:, 0].tolist(),
            "neutral": along[:, 1].tolist(),
            "same write": cosine_similarity(writes, writes[one][None]).tolist(),
        }
        return {
            **{name: [float(f"{v:.4g}") for v in values] for name, values in found.items()},
            "definitions": self._definitions(lm, asked, scaled),
            "control definitions": self._definitions(lm, asked, control),
        }

    def _definitions(self, lm: LanguageModel, asked: Asked, edited: ScaleToken) -> list[str]:
        """Greedy continuation of the prompt by factor."""
        rows = [asked.tokens] * len(self.factors)
        replies = decode(lm, rows, edited, self.max_new_tokens, progress=False)
        return [lm.tokenizer.decode(reply, skip_special_tokens=True) for reply in replies]

    def table(self, rows: Sequence[Row]) -> str:
        """Mean ± standard error over words by factor, agreement, and some definitions."""
        lines = [
            [
                f"{factor:g}",
                *(cell([row[name][k] for row in rows]) for name in _COLUMNS),
                *(_agreement([row[name][k] for row in rows]) for name in _TEXTS),
            ]
            for k, factor in enumerate(self.factors)
        ]
        head = ["c", *_COLUMNS.values(), "agreement", "agreement, control"]
        shown = [k for k, factor in enumerate(self.factors) if factor in _EXAMPLES]
        examples = [
            [f"{self.factors[k]:g}", *(_quoted(row["definitions"][k]) for row in rows[:3])]
            for k in shown
        ]
        titles = ["c", *(row["word"] for row in rows[:3])]
        return f"{markdown(head, lines)}\n{markdown(titles, examples)}"

    def picture(self, rows: Sequence[Row]) -> bytes:
        """Mean KL by factor: all of it, and with one of the two mechanisms left out."""
        canvas, axes = blank()
        above = [k for k, factor in enumerate(self.factors) if factor > 0]
        x = [self.factors[k] for k in above]
        for name, style in (
            ("kl", "C0-"),
            ("kl stream", "C1-"),
            ("kl attention", "C2-"),
            ("kl epsilon", "C3--"),
            ("kl first", "C4-"),
            ("kl control", "C7:"),
        ):
            y = [fmean(row[name][k] for row in rows) for k in above]
            axes.plot(x, y, style, marker="o", ms=3, lw=1.4, label=_COLUMNS[name])
        axes.set(xscale="log", xlabel="factor c of the embedding")
        axes.set(ylabel="KL of the next token from c = 1, nats")
        return png(canvas)


def _run(
    lm: LanguageModel,
    asked: Asked,
    edited: ScaleToken,
    layer: int,
    given: Sequence[Tensor] | None = None,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """One pass: logits at the end, attention patterns, and the stream at the word.

    Args:
        lm: The model.
        asked: The word in the prompt.
        edited: The edit, a factor for each row.
        layer: Layer of the stream.
        given: Attention patterns in the place of the pass's own.

    Raises:
        MelboError: Attention is not one softmax a block.
    """
    ids = torch.tensor([asked.tokens] * len(edited.factors), device=lm.device)
    patterns = Patterns(given)
    with torch.no_grad(), edit(lm, edited, prompt=ids.shape[1]), patterns:
        out = lm.model(
            input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True
        )
    if len(patterns.kept) != lm.depth:
        raise MelboError(
            f"{lm.name} took {len(patterns.kept)} softmaxes for {lm.depth} blocks: "
            "take a model whose attention is written out with one a block"
        )
    states = out.hidden_states[layer][:, asked.place].float()
    return out.logits[:, -1].float(), patterns.kept, states


def _attention(patterns: Sequence[Tensor], place: int) -> list[float]:
    """Attention of later tokens to one, mean over them, heads and blocks, by row."""
    later = torch.stack([pattern[:, :, place + 1 :, place].float() for pattern in patterns])
    means: list[float] = later.mean((0, 2, 3)).tolist()
    return means


def _agreement(replies: Sequence[str]) -> str:
    """Words that two replies share, as a share of those of either; mean over pairs."""
    sets = [set(reply.lower().split()) for reply in replies]
    shares = [len(a & b) / max(1, len(a | b)) for a, b in combinations(sets, 2)]
    return f"{fmean(shares):.2f}" if shares else "–"


def _quoted(text: str, most: int = 60) -> str:
    """Beginning of a reply as a cell of a table."""
    line = " ".join(text.split()).replace("|", "¦")
    return f"{line[:most]}…" if len(line) > most else line
