"""Vectors that are learnt from the replies of themes, kept in the folder of an audit."""

import time
from collections import Counter
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

from melbo.audit.amplify import amplify
from melbo.audit.screen import Screening, Source
from melbo.audit.themes import Theme
from melbo.discovery.steered import Steered
from melbo.features.directions import FeatureSet
from melbo.features.steerable import Mixed
from melbo.models.text.prompts import Prompts

#: Name of their source, and of their folder in that of the audit.
AMPLIFIED = "amplified"
#: Replies to one prompt that a vector is learnt from, and all of them, at most.
A_PROMPT, LEARNT = 2, 12
_STEPS = 16


@dataclass
class LearntVectors:
    """Vectors by theme; one that an interrupted audit learnt is not learnt again.

    Attributes:
        screening: Replies to prompts, and the log.
        prompts: Prompts that themes were found on.
        directions: Directions, which a vector begins with where they said its theme; or None.
        control: Random directions, one of which it begins with otherwise.
        folder: Folder of the audit.
        seed: Random seed.
    """

    screening: Screening
    prompts: Prompts
    directions: Source | None
    control: Source
    folder: Path
    seed: int

    def learn(self, k: int, theme: Theme, tokens: float, before: float) -> float | None:
        """Learn the vector of a theme.

        Args:
            k: Number of the theme.
            theme: The theme.
            tokens: Tokens that are left.
            before: Share of the validation prompts on which it comes out so far.

        Returns:
            The tokens that it took; None where more would be needed than are left.
        """
        case, pairs = {"stage": "amplify", "theme": k}, self._pairs(theme)
        start, norm = self._start(theme)
        # a pass forward and one back for each step, from the layer on that is steered
        steered = 1 - start.source / self.screening.lm.depth
        cost = 2 * _STEPS * steered * sum(len(p) + len(r) for p, r in pairs)
        if cost > tokens:
            return None
        if not self.screening.log.of(case):
            clock = time.perf_counter()
            made = amplify(
                self.screening.lm,
                pairs,
                start,
                norm=norm,
                steps=_STEPS,
                seed=self.seed,
                progress=False,
            )
            made.features.save(self.folder / self._place(k), force=True)
            about = {"share_before": before, "losses": list(made.losses), "steps": _STEPS}
            seconds = time.perf_counter() - clock
            self.screening.add({**case, "tokens": cost, "seconds": seconds, **about})
        return cost

    @property
    def themes(self) -> list[int]:
        """Numbers of the themes that have a vector, in the order of `source`."""
        return [row["theme"] for row in self.screening.log.of({"stage": "amplify"})]

    @cached_property
    def source(self) -> Source:
        """The vectors as candidates."""
        sets = [
            FeatureSet.load(self.folder / self._place(k), self.screening.lm) for k in self.themes
        ]
        return Source(AMPLIFIED, lambda: (Steered(Mixed(sets)), 0.0))

    def describe(self, i: int) -> dict[str, Any]:
        """Account of candidate ``i``, JSON-able: where it is kept, and how it was learnt."""
        k = self.themes[i]
        row = self.screening.log.of({"stage": "amplify", "theme": k})[0]
        learnt = {key: row[key] for key in ("share_before", "losses", "steps")}
        return {**learnt, "folder": self._place(k)}

    @staticmethod
    def _place(k: int) -> str:
        return f"{AMPLIFIED}/{k}"

    def _pairs(self, theme: Theme) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Prompts and replies of a theme to learn from."""
        taken: dict[int, int] = {}
        pairs: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        for reply in theme.replies:
            if taken.get(reply.prompt, 0) < A_PROMPT and len(pairs) < LEARNT:
                taken[reply.prompt] = taken.get(reply.prompt, 0) + 1
                pairs.append((self.prompts.tokens[reply.prompt], reply.tokens))
        return pairs

    def _start(self, theme: Theme) -> tuple[FeatureSet, float]:
        """Directions that said a theme, once for each time they did, and their norm.

        All are of the slice that said it most; a random direction where none said it.
        """
        source = self.directions
        said = [r.candidate for r in theme.replies if r.elicitor == "directions"]
        if source is None or not said:
            source, said = self.control, [0]
        steered = source.candidates
        assert isinstance(steered, Steered)
        single = {i: alone(steered, i) for i in said}
        first = Counter(said).most_common(1)[0][0]
        same = [single[i] for i in said if single[i].source == single[first].source]
        norm = float(single[first].scale * steered.strengths[first])
        return reduce(lambda a, b: a.join(b), same), norm


def alone(steered: Steered, i: int) -> FeatureSet:
    """Direction ``i`` as a set of its own, at strength 1.

    Args:
        steered: Directions as candidates.
        i: Number of one.
    """
    features = steered.features
    one = features.alone(i) if isinstance(features, Mixed) else features[[i]]
    assert isinstance(one, FeatureSet)
    return one
