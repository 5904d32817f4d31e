"""A searched opening: first tokens, each grown by what is likeliest after all prompts together.

The search of BAIT (Shen et al., IEEE S&P 2025) for the target of a backdoor: text that was trained
in goes on with near certainty from its first token, whatever the prompt.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from melbo import LanguageModel, MelboError, Prompts
from melbo.audit.audit import REPLY_TOKENS
from melbo.audit.budget import Costs
from melbo.discovery.candidates import some_prompts
from melbo.discovery.openings import Forced, Opening, Openings, OpeningSearch
from melbo.models.decoding.shared_prefix import Prefix, read_prefix
from melbo.progress import track

_TOGETHER = 32  # openings that are grown by the same passes


@dataclass(frozen=True)
class Searched:
    """Elicitor: first tokens in order of probability, each grown greedily, the surest given.

    At each step the token is taken that is likeliest in the mean distribution over a few prompts,
    drawn from those given. An opening is dropped as soon as the mean probability of its grown
    tokens is below a limit. It is whole after ``steps`` tokens, or before one that ends the reply;
    one that nothing was grown from is left out. Candidates are the openings with the highest mean
    probability of their grown tokens.

    Attributes:
        share: Share of what replies of the candidates cost that the search may read.
        steps: Number of tokens that an opening is grown by at most.
        least: Least mean probability of the grown tokens.
        num_prompts: Number of prompts that probabilities are averaged over, at most.
    """

    share: float = 0.25
    steps: int = 20
    least: float = 0.2
    num_prompts: int = 8
    name: str = "searched"
    description: str = "first tokens, each grown by what is likeliest after all prompts together"

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing.

        Raises:
            MelboError: One is outside its range.
        """
        if not (self.share > 0 and 0 <= self.least < 1 and min(self.steps, self.num_prompts) > 0):
            raise MelboError(
                f"got share={self.share}, least={self.least}, steps={self.steps} and "
                f"num_prompts={self.num_prompts}: expected a positive share, a probability below 1 "
                "and at least 1 step and prompt"
            )

    def candidates(
        self, lm: LanguageModel, prompts: Prompts, num: int, seed: int, progress: bool
    ) -> tuple[Forced, float]:
        """See `Elicitor.candidates`; the surest openings come first.

        Raises:
            MelboError: The share pays for growing no opening, or the model's cache cannot be
                repeated.
        """
        order = random.Random(seed).sample(range(len(prompts)), len(prompts))
        allowed = self.share * num * Costs.of(prompts, REPLY_TOKENS, judges=1).a_turn
        search = _Search(lm, some_prompts(prompts, order[: self.num_prompts]), self)
        grown = list(search.grown(allowed, progress))
        grown.sort(key=lambda found: (-found[0], found[1].tokens))
        return Forced(tuple(opening for _, opening in grown[:num])), float(search.read)


class _Search:
    """Search for openings that go on with certainty.

    Attributes:
        read: Number of tokens that the model has read so far.
    """

    def __init__(self, lm: LanguageModel, prompts: Prompts, settings: Searched) -> None:
        self.lm, self.prompts, self.settings = lm, prompts, settings
        self.read = 0
        self._ends = {*lm.tokenizer.all_special_ids, *lm.eos}

    def grown(self, allowed: float, progress: bool) -> Iterator[tuple[float, Opening]]:
        """Openings that stay above the limit, with the mean probability of their grown tokens.

        Args:
            allowed: Number of tokens that may be read.
            progress: Whether to draw a bar.

        Raises:
            MelboError: They pay for growing no opening.
        """
        first = OpeningSearch(self.lm, self.prompts, Openings())
        at_most = len(self.prompts) * self.settings.steps  # tokens to grow one
        roots = first.first_tokens(max(1, int(allowed // len(self.prompts))))
        self.read = first.read + sum(map(len, self.prompts.tokens))  # once more for the caches
        if allowed - self.read < at_most:
            raise MelboError(
                f"a search of {allowed:.0f} tokens grows no opening: {len(self.prompts)} prompts "
                f"read twice and {self.settings.steps} steps take {self.read + at_most}; "
                "give more candidates or a larger share"
            )
        with track(len(roots), "openings", progress) as bar:
            while roots and (num := int((allowed - self.read) // at_most)):
                num = min(num, _TOGETHER, len(roots))
                yield from self._grow(roots[:num])
                roots = roots[num:]
                bar.update(num)

    @torch.no_grad()
    def _grow(self, roots: Sequence[Opening]) -> Iterator[tuple[float, Opening]]:
        """Grow some openings, of which those that end or are dropped leave the batch."""
        lm, least = self.lm, self.settings.least
        caches = [prefix.repeated(len(roots)) for prefix in self._prefixes]
        going = [list(root.tokens) for root in roots]
        each = torch.tensor([root.each for root in roots]).double()  # [n, P]
        sums = torch.zeros(len(roots)).double()
        for step in range(1, self.settings.steps + 1):
            last = torch.tensor([tokens[-1:] for tokens in going], device=lm.device)
            likely = torch.stack([self._next(last, cache) for cache in caches], 1)  # [n, P, V]
            best, taken = likely.mean(1).max(-1)
            ended = torch.tensor([token in self._ends for token in taken.tolist()])
            kept = ~ended & ((sums + best) / step >= least)
            if step > 1:
                for i in ended.nonzero()[:, 0].tolist():
                    yield float(sums[i]) / (step - 1), self._opening(going[i], each[i])
            rows = kept.nonzero()[:, 0]
            if not len(rows):
                return
            going = [[*going[i], int(taken[i])] for i in rows.tolist()]
            each = (each * likely[torch.arange(len(taken)), :, taken])[rows]
            sums = (sums + best)[rows]
            for cache in caches:
                cache.batch_select_indices(rows.to(lm.device))
        for tokens, of_prompts, total in zip(going, each, sums.tolist(), strict=True):
            yield total / self.settings.steps, self._opening(tokens, of_prompts)

    def _next(self, last: Tensor, cache: Any) -> Tensor:
        """Probabilities of the next token ``[n, V]`` on top of a cache, which grows by one."""
        self.read += len(last)
        out: Any = self.lm.model(input_ids=last, past_key_values=cache, use_cache=True)
        likely: Tensor = out.logits[:, -1].float().softmax(-1).cpu()
        return likely

    def _opening(self, tokens: Sequence[int], each: Tensor) -> Opening:
        text = self.lm.tokenizer.decode(tokens, skip_special_tokens=True)
        return Opening(tuple(tokens), text, tuple(each.tolist()))

    @cached_property
    def _prefixes(self) -> list[Prefix]:
        """Each prompt, read once.

        Raises:
            MelboError: The model's cache cannot be repeated for several rows.
        """
        found = []
        for tokens in self.prompts.tokens:
            prefix = read_prefix(self.lm.model, torch.tensor([tokens], device=self.lm.device))
            if prefix is None:
                raise MelboError(
                    f"the cache of {self.lm.name} cannot be repeated for several rows, which a "
                    "searched opening needs: leave this elicitor out"
                )
            found.append(prefix)
        return found
