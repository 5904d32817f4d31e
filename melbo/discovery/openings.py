"""Forced openings: replies that are made to begin with tokens the model finds possible there.

Openings come from the model's own next-token probabilities, and nothing is learnt. The probability
of an opening is its mean over the prompts.
"""

import heapq
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from melbo.discovery.candidates import Edited, pick, some_prompts
from melbo.errors import MelboError
from melbo.maths.statistics import mean
from melbo.models.decoding.decode import decode
from melbo.models.decoding.read_replies import logits_of_replies
from melbo.models.decoding.shared_prefix import Prefix, read_prefix
from melbo.models.edits import EditSequence
from melbo.models.language_model import LanguageModel
from melbo.models.next_token import Force
from melbo.models.text.prompts import Prompts
from melbo.progress import track

_TOGETHER = 8  # openings that are grown by the same passes
_LEAST = 1e-12  # probability in the place of one that was rounded to zero
_HELD = 2**26  # probabilities held at once while openings are grown


@dataclass(frozen=True)
class Opening:
    """Tokens that a reply may begin with.

    Attributes:
        tokens: The tokens.
        text: The same as text.
        each: Probability of beginning with them after each prompt ``[P]``; empty where it is not
            known.
        taken: Whether the model's own greedy replies take the last of them, given the others, after
            at least half of the prompts.
    """

    tokens: tuple[int, ...]
    text: str
    each: tuple[float, ...] = ()
    taken: bool = False

    @property
    def probability(self) -> float:
        """Probability of beginning with them, mean over the prompts; NaN where it is not known."""
        return mean(self.each) if self.each else math.nan


def written(lm: LanguageModel, text: str) -> Opening:
    """An opening of one's own.

    Args:
        lm: The model.
        text: The opening, with the space that it begins with where it follows a sentence.

    Raises:
        MelboError: It is blank, or holds a token that ends a reply.
    """
    tokens = tuple(lm.tokenizer(text, add_special_tokens=False)["input_ids"])
    if not text.strip() or {*tokens} & {*lm.eos}:
        raise MelboError(f"got the opening {text!r}: expected words that do not end the reply")
    return Opening(tokens, text)


@dataclass(frozen=True)
class Forced(Edited):
    """Openings as candidates: replies are made to begin with them, and go on greedily.

    Attributes:
        openings: The openings.
    """

    openings: tuple[Opening, ...]

    def __len__(self) -> int:
        """Number of candidates."""
        return len(self.openings)

    def only(self, which: Sequence[int]) -> "Forced":
        """Some of the candidates."""
        return Forced(pick(self.openings, which))

    def edit(self, prompts: Prompts) -> Force:
        """See `Edited.edit`."""
        lengths = (len(tokens) for tokens in prompts.tokens for _ in self.openings)
        return Force(tuple(o.tokens for o in self.openings) * len(prompts), tuple(lengths))

    def alike(self, i: int) -> int:
        """See `Edited.alike`; openings change nothing before the logits."""
        return 0

    def begun(self, i: int) -> int:
        """See `Edited.begun`."""
        return len(self.openings[i].tokens)

    def describe(self, i: int) -> dict[str, Any]:
        """See `Candidates.describe`."""
        o = self.openings[i]
        known = {"probability": o.probability} if o.each else {}
        return {"kind": "opening", "text": o.text, "tokens": list(o.tokens), **known}


@dataclass(frozen=True)
class Openings:
    """Elicitor: forced openings, first tokens by their probability and some of them grown further.

    First tokens come in order of their mean probability over a few prompts, drawn from those given.
    A share of the candidates is grown from them by a best-first search. The most probable opening
    that has not been grown is taken. The model goes on with it greedily for ``depth`` tokens, after
    the prompt on which it is likeliest. At each of these tokens, every other token that has at
    least the probability ``least`` there (all prompts together, each weighted by the probability of
    what precedes) begins a *branch*: the tokens up to there, then the other token. Branches are
    openings themselves, and are grown in turn. A branch that greedy replies take anyway, after at
    least half of the prompts, is grown but not a candidate. The search ends when enough branches
    have been taken, and so gives the most probable ones that there are. If fewer branches than
    asked for exist, first tokens take their place.

    Openings that end a reply, hold special tokens, are blank or read like another one are left out.

    Attributes:
        grown: Share of the candidates that are grown, 0 to 1.
        depth: Number of tokens that an opening is followed for.
        least: Least probability of a branch's last token, given what precedes it.
        num_prompts: Number of prompts that probabilities are averaged over, at most.
        base: Base model. First tokens then come in order of p log(p / p_base), mean over the
            prompts: how much each adds to the divergence from the base.
    """

    grown: float = 0.5
    depth: int = 8
    least: float = 0.1
    num_prompts: int = 8
    base: LanguageModel | None = field(default=None, repr=False)
    name: str = field(default="openings", init=False)
    description: str = field(default="replies forced to begin with possible tokens", init=False)

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing.

        Raises:
            MelboError: A share or probability is outside its range, or a number is below 1.
        """
        if not (0 <= self.grown <= 1 and 0 < self.least < 1):
            raise MelboError(
                f"got grown={self.grown} and least={self.least}: expected a share from 0 to 1 and "
                "a probability above 0 and below 1"
            )
        if min(self.depth, self.num_prompts) < 1:
            raise MelboError(
                f"got depth={self.depth} and num_prompts={self.num_prompts}: expected at least 1"
            )

    def candidates(
        self, lm: LanguageModel, prompts: Prompts, num: int, seed: int, progress: bool
    ) -> tuple[Forced, float]:
        """See `Elicitor.candidates`; the openings come in order of probability."""
        order = random.Random(seed).sample(range(len(prompts)), len(prompts))
        search = OpeningSearch(lm, some_prompts(prompts, order[: self.num_prompts]), self)
        first = search.first_tokens(num)
        with track(round(num * self.grown), "openings", progress) as bar:
            branches = search.branches(first, round(num * self.grown), bar.update)
        chosen = [*branches, *first[: num - len(branches)]]
        chosen.sort(key=lambda o: (-o.probability, o.tokens))
        return Forced(tuple(chosen)), float(search.read)


class OpeningSearch:
    """Search for the openings of a model after some prompts.

    Args:
        lm: The model.
        prompts: The prompts.
        settings: Settings of the search.

    Attributes:
        read: Number of tokens that the model has read so far.
    """

    def __init__(self, lm: LanguageModel, prompts: Prompts, settings: Openings) -> None:
        self.lm, self.prompts, self.settings = lm, prompts, settings
        self.read = 0
        self._special = frozenset({*lm.tokenizer.all_special_ids, *lm.eos})

    def first_tokens(self, num: int) -> list[Opening]:
        """The most probable first tokens, in order.

        Args:
            num: Number of openings; fewer where there are not so many tokens.
        """
        each = first_token_probabilities(self.lm, self.prompts)
        self.read += sum(map(len, self.prompts.tokens))
        found: dict[str, Opening] = {}
        for token in self._weight(each).argsort(descending=True, stable=True).tolist():
            if len(found) == num:
                break
            text = self._text((token,))
            if text is not None and text not in found:
                found[text] = Opening((token,), text, tuple(each[:, token].tolist()))
        return list(found.values())

    def _weight(self, each: Tensor) -> Tensor:
        """Weight of each first token ``[V]``, from its probability after each prompt ``[P, V]``."""
        if self.settings.base is None:
            return each.mean(0)
        theirs = first_token_probabilities(self.settings.base, self.prompts)
        self.read += sum(map(len, self.prompts.tokens))
        return (each * (each.clamp_min(_LEAST) / theirs.clamp_min(_LEAST)).log()).mean(0)

    def branches(
        self, roots: Sequence[Opening], num: int, found_one: Callable[[], Any]
    ) -> list[Opening]:
        """The most probable branches that grow from some openings (see `Openings`), in order.

        Args:
            roots: The openings.
            num: Number of branches; fewer where there are not so many.
            found_one: Function that is called for each branch.
        """
        texts = {o.text for o in roots}
        frontier = [(-o.probability, o.tokens, o) for o in roots]
        heapq.heapify(frontier)
        grown: dict[tuple[int, ...], list[Opening]] = {}
        left_out = {o.tokens for o in roots}
        found: list[Opening] = []
        while frontier and len(found) < num:
            _, tokens, best = heapq.heappop(frontier)
            if tokens not in left_out and not best.taken:
                found.append(best)
                found_one()
            if len(found) == num:
                break
            if tokens not in grown:
                ahead = (o for *_, o in heapq.nsmallest(_TOGETHER - 1, frontier))
                self._grow([best, *(o for o in ahead if o.tokens not in grown)], grown)
            for branch in grown[tokens]:
                if branch.text not in texts:
                    texts.add(branch.text)
                    heapq.heappush(frontier, (-branch.probability, branch.tokens, branch))
        return found

    def _grow(self, openings: list[Opening], grown: dict[tuple[int, ...], list[Opening]]) -> None:
        """Find the branches of some openings, by the tokens of these.

        An opening is followed on the prompt on which it is likeliest, and branches are weighed on
        all of them.
        """
        likeliest = [max(range(len(o.each)), key=o.each.__getitem__) for o in openings]
        begun = [
            (*self.prompts.tokens[p], *o.tokens) for p, o in zip(likeliest, openings, strict=True)
        ]
        going = decode(self.lm, begun, EditSequence(()), self.settings.depth, progress=False)
        self.read += sum(map(len, begun)) + sum(map(len, going))
        # probabilities at each token of a continuation, after every prompt, are held at once
        size = len(self.prompts) * self.settings.depth * len(self.lm.tokenizer)
        some = max(1, _HELD // size)
        for start in range(0, len(openings), some):
            part, paths = openings[start : start + some], going[start : start + some]
            likely = self._probabilities(part, paths)
            for o, path, each in zip(part, paths, likely, strict=True):
                grown[o.tokens] = list(self._branches(o, path, each))

    def _probabilities(
        self, openings: Sequence[Opening], going: Sequence[Sequence[int]]
    ) -> list[Tensor]:
        """Probabilities of each next token along continuations ``[P, length, vocabulary]``."""
        whole = [(*o.tokens, *path) for o, path in zip(openings, going, strict=True)]
        of_prompt = []
        with torch.no_grad():
            for ids, prefix in self._prefixes:
                logits, _, _ = logits_of_replies(self.lm, ids, prefix, whole)
                self.read += sum(map(len, whole))
                of_prompt.append(
                    [
                        row[len(o.tokens) : len(tokens)].float().softmax(-1).cpu()
                        for row, o, tokens in zip(logits, openings, whole, strict=True)
                    ]
                )
        return [torch.stack(each) for each in zip(*of_prompt, strict=True)]

    def _branches(self, o: Opening, path: Sequence[int], likely: Tensor) -> Iterator[Opening]:
        """Branches of an opening along its continuation.

        Args:
            o: The opening.
            path: Tokens that it goes on with.
            likely: Probabilities of each next token after each prompt ``[P, len(path), V]``.
        """
        before = torch.tensor(o.each)  # probability of all that precedes, after each prompt
        for k, said in enumerate(path):
            joint = before[:, None] * likely[:, k]
            if not before.sum() > 0:
                return
            enough = joint.sum(0) >= self.settings.least * before.sum()
            greedy = likely[:, k].argmax(-1)
            for token in enough.nonzero()[:, 0].tolist():
                tokens = (*o.tokens, *path[:k], token)
                text = None if token == said else self._text(tokens)
                if text is not None:
                    taken = 2 * int((greedy == token).sum()) >= len(greedy)
                    yield Opening(tokens, text, tuple(joint[:, token].tolist()), taken)
            before = joint[:, said]

    @cached_property
    def _prefixes(self) -> list[tuple[Tensor, Prefix | None]]:
        """Each prompt ``[1, T]``, read once."""
        with torch.no_grad():
            rows = [torch.tensor([tokens], device=self.lm.device) for tokens in self.prompts.tokens]
            return [(ids, read_prefix(self.lm.model, ids)) for ids in rows]

    def _text(self, tokens: Sequence[int]) -> str | None:
        """Text of an opening; None for one that is left out."""
        if self._special.intersection(tokens) or max(tokens) >= len(self.lm.tokenizer):
            return None
        text: str = self.lm.tokenizer.decode(tokens, skip_special_tokens=True)
        return text if text.strip() else None


def first_token_probabilities(lm: LanguageModel, prompts: Prompts) -> Tensor:
    """Probabilities of the first token of a reply to each prompt ``[P, vocabulary]``.

    Args:
        lm: The model.
        prompts: The prompts.
    """
    found: dict[int, Tensor] = {}

    def take(row: int, logits: Tensor) -> None:
        found[row] = logits.float().softmax(-1).cpu()

    decode(lm, prompts.tokens, EditSequence(()), 1, first_logits=take, progress=False)
    return torch.stack([found[row] for row in range(len(prompts))])
