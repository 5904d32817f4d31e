"""Replies of many features to many prompts, in one table."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from melbo.display.figures import blank, finished, whole_numbers
from melbo.display.shown import Record, Shown, Table
from melbo.errors import MelboError
from melbo.features.steerable import Steerable, require_features
from melbo.maths.statistics import kl, mean
from melbo.models.decoding.decode import Batching, decode
from melbo.models.edits import Where
from melbo.models.language_model import LanguageModel
from melbo.models.text.prompts import Prompts, require_prompts
from melbo.records import write_atomically

if TYPE_CHECKING:
    from melbo.display.picture import Picture

_SAVED = ("kind", "feature", "prompt", "prompt_text", "text")


@dataclass(frozen=True)
class FirstToken:
    """Scores of the distribution over a reply's first token.

    Attributes:
        kl: KL(steered ‖ unsteered) in nats; None where there is no unsteered reply.
        contrast: logit(a) − logit(b) of a pair of tokens; None where no pair was given.
        overflowed: Whether the logits hold nan or +∞; all of them then count as zero.
    """

    kl: float | None
    contrast: float | None
    overflowed: bool


@dataclass(frozen=True)
class Completion:
    """A reply of the model.

    Attributes:
        kind: ``"unsteered"``, ``"feature"`` or ``"control"``.
        feature: Index of the feature (or control) in its set; None when unsteered.
        prompt: Index of the prompt.
        prompt_text: The prompt as the user wrote it.
        text: The reply, special tokens left out.
        tokens: Its token ids, the end-of-reply token included where it came.
        first: Scores of its first token; None in a table that was read from a file.
        begun: Number of tokens that it was made to begin with.
    """

    kind: str
    feature: int | None
    prompt: int
    prompt_text: str
    text: str
    tokens: tuple[int, ...]
    first: FirstToken | None = None
    begun: int = 0


@dataclass(frozen=True, repr=False)
class Completions(Shown):
    """A table of replies.

    For every prompt it holds the unsteered reply (if asked for), then that of every feature, then
    that of every control.

    Attributes:
        rows: The replies.
    """

    rows: tuple[Completion, ...]

    def __iter__(self) -> Iterator[Completion]:
        """The replies one by one."""
        return iter(self.rows)

    def __len__(self) -> int:
        """Number of replies."""
        return len(self.rows)

    def of(self, kind: str, feature: int | None = None) -> list[Completion]:
        """Replies of one feature, prompt by prompt.

        Args:
            kind: ``"unsteered"``, ``"feature"`` or ``"control"``.
            feature: Index of the feature or control.
        """
        return [c for c in self.rows if c.kind == kind and c.feature == feature]

    def plot(self) -> "Picture":
        """See `Shown.plot`; KL of the first token of each vector's replies, mean over prompts.

        Raises:
            MelboError: The table holds no such scores, as it was made without the unsteered
                replies or read from a file.
        """
        canvas, axes = blank(3.6)
        for kind, colour in (("feature", "C0"), ("control", "grey")):
            scores: dict[int, list[float]] = {}
            for c in self.rows:
                if c.kind == kind and c.feature is not None and c.first and c.first.kl is not None:
                    scores.setdefault(c.feature, []).append(c.first.kl)
            if scores:
                means = [mean(values) for values in scores.values()]
                axes.plot(list(scores), means, "o", color=colour, ms=3, label=kind)
        if not axes.lines:
            raise MelboError(
                "these replies have no scores of their first tokens to draw: "
                "generate them with unsteered=True"
            )
        axes.set(xlabel="index", ylabel="KL(steered ‖ unsteered) of\nthe first token, nats")
        axes.set_ylim(bottom=0)
        whole_numbers(axes.xaxis)
        return finished(canvas)

    def _table(self) -> Table:
        prompts = len({c.prompt for c in self.rows})
        title = f"{len(self)} replies to {prompts} prompt{'s' * (prompts != 1)}"
        headings = {"prompt_text": "prompt", "kind": "of", "feature": "index", "text": "reply"}
        return Table.of(title, self._records(), headings)

    def _records(self) -> Sequence[Record]:
        """Replies."""
        return [
            {**{name: getattr(c, name) for name in _SAVED}, "kl": c.first and c.first.kl}
            for c in self.rows
        ]

    def to_jsonl(self) -> bytes:
        """JSON lines, one for each reply, without token ids and scores."""
        kept = ({name: getattr(c, name) for name in _SAVED} for c in self.rows)
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept).encode()

    def save(self, path: str | Path) -> None:
        """Write as JSON lines."""
        write_atomically({Path(path): self.to_jsonl()})


def generate(
    lm: LanguageModel,
    prompts: Prompts,
    features: Steerable,
    control: Steerable | None = None,
    *,
    max_new_tokens: int = 48,
    strength: float | Tensor = 1.0,
    batch_size: int = 128,
    contrast: tuple[int, int] | None = None,
    unsteered: bool = True,
    progress: bool = True,
    temperature: float = 0.0,
    where: Where = "all",
) -> Completions:
    """Reply to every prompt with every feature, the unsteered reply first.

    Args:
        lm: The model.
        prompts: Prompts that it replies to.
        features: The features.
        control: Features of the same kind that are compared with these, usually
            ``features.random(…)``.
        max_new_tokens: Length of a reply at most.
        strength: Multiple of the fit's scale; one for all, or one for each feature and control
            ``[m + c]``.
        batch_size: Number of rows decoded together; halved by itself when memory runs out.
        contrast: Ids of two tokens a and b, whose logits are compared where a reply begins.
        unsteered: Whether the unsteered replies are wanted too.
        progress: Whether to draw a bar.
        temperature: 0 for greedy replies; others are drawn (``torch.manual_seed`` says which).
        where: Tokens to steer: ``"all"`` (as in the fit), ``"prompt"`` or ``"generated"`` ones.

    Raises:
        MelboError: The features are of another model or do not act there, the temperature or the
            number of strengths is wrong, or `melbo.models.decoding.decode.decode` refuses the rest.
    """
    _check(lm, prompts, features)
    check_temperature(temperature)
    both = features if control is None else features.join(control)
    strengths = torch.cat([torch.zeros(int(unsteered)), _one_each(strength, len(both))])
    of_prompt: list[tuple[str, int | None]] = [
        *([("unsteered", None)] if unsteered else []),
        *(("feature", i) for i in range(len(features))),
        *(("control", i) for i in range(len(both) - len(features))),
    ]
    which = torch.tensor([*[0] * unsteered, *range(len(both))]).repeat(len(prompts))
    first = _FirstTokens(len(of_prompt), unsteered, contrast)
    replies = decode(
        lm,
        [prompt for prompt in prompts.tokens for _ in of_prompt],
        both.edit(which, strengths.repeat(len(prompts)), where),
        max_new_tokens,
        Batching(batch_size),
        first.take,
        progress,
        temperature,
        alike=[*range(len(of_prompt))] * len(prompts),
    )
    return _table(lm, prompts, of_prompt, replies, first.found)


def _table(
    lm: LanguageModel,
    prompts: Prompts,
    of_prompt: Sequence[tuple[str, int | None]],
    replies: Sequence[Sequence[int]],
    first: Mapping[int, FirstToken],
) -> Completions:
    """Replies and scores of their first tokens as a table, of which ``of_prompt`` is one prompt."""
    texts = lm.tokenizer.batch_decode(replies, skip_special_tokens=True)
    who = [(kind, i, p) for p in range(len(prompts)) for kind, i in of_prompt]
    rows = [
        Completion(kind, i, p, prompts.texts[p], text, tuple(reply), first[row])
        for row, ((kind, i, p), text, reply) in enumerate(zip(who, texts, replies, strict=True))
    ]
    return Completions(tuple(rows))


def _check(lm: LanguageModel, prompts: Prompts, features: Steerable) -> None:
    """Refuse what is no prompts or no features, and features of another model."""
    require_prompts(prompts=prompts)
    require_features(features=features)
    features.check_model(lm)


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that nothing can be drawn at.

    Raises:
        MelboError: It is negative or not finite.
    """
    if not (math.isfinite(temperature) and temperature >= 0):
        raise MelboError(
            f"temperature is {temperature}: expected a finite number from 0, which is greedy"
        )


def _one_each(strength: float | Tensor, num: int) -> Tensor:
    """A strength for each of ``num`` features.

    Raises:
        MelboError: There are neither one nor ``num`` of them.
    """
    strength = torch.as_tensor(strength).cpu()
    if strength.shape not in ((), (1,), (num,)):
        raise MelboError(
            f"got strengths of shape {list(strength.shape)}: expected one for all, "
            f"or one for each of {num}"
        )
    return strength.expand(num)


def first_tokens(lm: LanguageModel, pair: tuple[str, str]) -> tuple[int, int]:
    """Id of the token with which a reply begins, for each of two strings.

    Args:
        lm: The model.
        pair: The two strings.

    Raises:
        MelboError: A string is empty, or both begin with the same token.
    """
    tokens = [lm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in pair]
    if not all(tokens):
        raise MelboError(f"got the pair {pair}: expected two strings with at least one token each")
    a, b = (int(t[0]) for t in tokens)
    if a == b:
        raise MelboError(
            f"{pair[0]!r} and {pair[1]!r} begin with the same token {lm.tokenizer.decode([a])!r}: "
            "choose strings that differ at once"
        )
    return a, b


class _FirstTokens:
    """Scores of first tokens, computed as logits come, so that only the unsteered ones are kept.

    Args:
        rows_per_prompt: Number of rows of the table that belong to a prompt.
        unsteered: Whether the first of them is unsteered.
        pair: Ids of the two tokens that are compared.

    Attributes:
        found: Scores of each row.
    """

    def __init__(self, rows_per_prompt: int, unsteered: bool, pair: tuple[int, int] | None) -> None:
        self._rows_per_prompt, self._unsteered, self._pair = rows_per_prompt, unsteered, pair
        self._plain: dict[int, Tensor] = {}
        self.found: dict[int, FirstToken] = {}

    def take(self, row: int, logits: Tensor) -> None:
        """Score the logits ``[vocabulary]`` of a row of the table."""
        prompt, index = divmod(row, self._rows_per_prompt)
        # −∞ is no overflow: some models mask words with it
        overflowed = bool((logits.isnan() | logits.isposinf()).any())
        logits = torch.zeros_like(logits) if overflowed else logits
        contrast = None
        if self._pair is not None:
            contrast = (logits[self._pair[0]] - logits[self._pair[1]]).item()
        if self._unsteered and index == 0:
            self._plain[prompt] = logits
        plain = self._plain.get(prompt)
        divergence = None if plain is None else kl(logits, plain)
        self.found[row] = FirstToken(divergence, contrast, overflowed)
