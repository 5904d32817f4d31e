"""Watching: on which prompts a feature fires unprompted, judged by ordinary prompts (METHOD §5)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from melbo.errors import MelboError
from melbo.features.directions import FeatureSet
from melbo.models.language_model import LanguageModel
from melbo.models.prompts import Prompts, pad_rows
from melbo.progress import track

#: A feature fires above this many standard deviations. To be above all of a few dozen reference prompts is little: m features are 2m scores a prompt.
#: Largest cosines over tokens have heavy tails: of 512 random features of the bundled model some 6 pass 4 on an ordinary prompt, 1 passes 6
#: (counted by hand); where a feature was steered with, the median z at the source was 12 to 56. `Watch.expected` counts for the features at hand.
FIRES_ABOVE = 6.0
#: The fewest reference prompts that a mean and a deviation are taken of.
LEAST_REFERENCE = 8

_LEAST_SPREAD = 1e-4  # cosines that differ by less differ by rounding: all reference prompts have them at the same token
_TOKENS = 1024  # of a batch, padding included


@dataclass(frozen=True)
class Watch:
    """How strongly m features are there on n prompts, judged by r reference prompts.

    Attributes:
        prompts: The n prompts.
        sides: What is looked for, s of them: ``"source"`` (v in the stream entering the source layer), ``"target"`` (u at the target layer).
        score: Largest cosine with the stream over the tokens looked at ``[n, m, s]``.
        token: Place in its prompt of the token where that is ``[n, m, s]``.
        reference: Scores of the reference prompts ``[r, m, s]``; ``dataclasses.replace(steered, reference=plain.reference)`` judges what was seen
            while the model was steered by what is ordinary when it is not.
        words: Text of every token id in the prompts.
    """

    prompts: Prompts
    sides: tuple[str, ...]
    score: Tensor
    token: Tensor
    reference: Tensor
    words: Mapping[int, str]

    @property
    def z(self) -> Tensor:
        """How far each score is above the mean of the reference, in its standard deviations, ``[n, m, s]``."""
        return _z(self.score, self.reference)

    @property
    def p(self) -> Tensor:
        """(1 + reference prompts with a score at least as high) / (1 + r), ``[n, m, s]``; a p-value of one feature and side, at least 1 / (1 + r)."""
        return (1 + (self.reference >= self.score[:, None]).sum(1)) / (1 + len(self.reference))

    @property
    def fires(self) -> Tensor:
        """Whether the score is higher than on every reference prompt and z above `FIRES_ABOVE`, ``[n, m, s]``."""
        return _fires(self.score, self.reference)

    @property
    def expected(self) -> float:
        """How many (feature, side) fire on an ordinary prompt: their mean number on a reference prompt judged by the others.

        It goes in steps of 1 / r: 0 says that few do, not that none ever does.
        """
        r = len(self.reference)
        others = ~torch.eye(r, dtype=torch.bool)
        return (
            sum(int(_fires(self.reference[i], self.reference[others[i]]).sum()) for i in range(r))
            / r
        )

    def describe(self) -> dict[str, Any]:
        """Every firing, highest z first, and their number on each prompt beside the number expected by chance; JSON-able."""
        z, p, fires = self.z, self.p, self.fires
        firings = [
            {
                "prompt": i,
                "text": self.prompts.texts[i],
                "feature": feature,
                "side": self.sides[side],
                "z": z[i, feature, side].item(),
                "p": p[i, feature, side].item(),
                "token": self.words[self.prompts.tokens[i][self.token[i, feature, side]]],
            }
            for i, feature, side in fires.nonzero().tolist()
        ]
        return {
            "fires_above": FIRES_ABOVE,
            "num_reference": len(self.reference),
            "expected_by_chance": self.expected,
            "counts": fires.sum((1, 2)).tolist(),
            "firings": sorted(firings, key=lambda firing: -firing["z"]),
        }


def watch(
    lm: LanguageModel,
    features: FeatureSet,
    prompts: Prompts,
    reference: Prompts,
    *,
    skip_first: bool = True,
    progress: bool = True,
) -> Watch:
    """Look for features in what the model makes of prompts by itself: V in the stream entering ``source``, U in that entering ``target``.

    The score of a prompt is the largest projection over its tokens, each taken in units of its own norm: ⟨h, v⟩/‖h‖. Blocks read the stream through
    a norm; and further tokens than the first may be attention sinks (in the bundled model the first "the" of a prompt), whose norm alone would
    decide. Left out are the tokens of a prompt's beginning that all reference prompts begin with too, as with a chat template: a causal model makes
    the same of them whatever follows, so a peak there says nothing of the prompt. The last token is always looked at.

    What steers the model meanwhile (``with melbo.steer(...)`` around this call) is seen, on prompts and reference alike.

    Args:
        lm: The model.
        bank: Its features. Where U is not of the stream (a map with ``concatenate``, or that reads attention), only the source side is watched.
        prompts: What to watch.
        reference: Ordinary prompts, read in the same way (chat template, system message); `melbo.prompts.REFERENCE` has texts. The more there
            are, the smaller p can be.
        skip_first: Leave out the first token, the attention sink, also where prompts begin differently.
        progress: Draw a bar.

    Raises:
        MelboError: Features of another model, layers without a slice between them, fewer than 8 different reference prompts, a prompt that is in
            the reference, a chat template on one of the two only, or hidden states that are not finite.
    """
    if features.kind != "features":
        raise MelboError(
            f"got {features.kind}: expected directions, which can be looked for in the stream"
        )
    features.check_model(lm)
    source, target = lm.layer(features.source, "source"), lm.layer(features.target, "target")
    if source >= target:
        raise MelboError(
            f"source is {features.source} and target is {features.target}: expected source < target"
        )
    _check_reference(prompts, reference)
    of_stream = (
        features.U.shape[1] == lm.width
        and features.meta.get("map", {}).get("read", "stream") == "stream"
    )
    sides = {"source": features.V, "target": features.U} if of_stream else {"source": features.V}
    everyone = replace(
        prompts, texts=prompts.texts + reference.texts, tokens=prompts.tokens + reference.tokens
    )
    shared = reference.tokens[0][: _alike(reference.tokens)]
    dtype = torch.promote_types(lm.dtype, torch.float32)
    score = torch.empty(len(everyone), len(features), len(sides), dtype=dtype)
    token = torch.empty(score.shape, dtype=torch.long)
    with track(len(everyone), "watch", progress) as bar:
        for group in everyone.by_length(_TOKENS, 1 / 8):
            rows = [everyone.tokens[i] for i in group]
            part = lm.capture(*pad_rows(rows, lm.pad, side="right"), source, target)
            for side, (stream, directions) in enumerate(
                zip((part.hidden, part.output), sides.values(), strict=False)
            ):
                directions = directions.to(stream.device, dtype)
                for i, row, hidden in zip(group, rows, stream, strict=True):
                    start = min(max(int(skip_first), _alike([shared, row])), len(row) - 1)
                    seen = torch.nn.functional.normalize(hidden[start : len(row)].to(dtype), dim=-1)
                    peak = (seen @ directions.T).max(0)
                    score[i, :, side], token[i, :, side] = peak.values, start + peak.indices
            bar.update(len(group))
    n = len(prompts)
    words = {t: lm.tokenizer.decode([t]) for t in {t for row in prompts.tokens for t in row}}
    return Watch(prompts, tuple(sides), score[:n], token[:n], score[n:], words)


def _check_reference(prompts: Prompts, reference: Prompts) -> None:
    if prompts.kind != reference.kind:
        raise MelboError(
            f"got prompts of kind {prompts.kind!r} and a reference of kind {reference.kind!r}: make both with Prompts.{prompts.kind}"
        )
    different = len(set(reference.tokens))
    if different < LEAST_REFERENCE:
        raise MelboError(
            f"got {different} different reference prompts, expected at least {LEAST_REFERENCE}: melbo.prompts.REFERENCE has ordinary ones"
        )
    for i, row in enumerate(prompts.tokens):
        if row in reference.tokens:
            raise MelboError(
                f"prompt {i} ({prompts.texts[i][:40]!r}) is in the reference, expected others: take it out of one of the two"
            )


def _alike(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with."""
    return next(
        (i for i, tokens in enumerate(zip(*rows, strict=False)) if len(set(tokens)) > 1),
        min(map(len, rows)),
    )


def _z(score: Tensor, reference: Tensor) -> Tensor:
    """``[..., m, s]`` in standard deviations of ``[r, m, s]``."""
    return (score - reference.mean(0)) / reference.std(0).clamp(min=_LEAST_SPREAD)


def _fires(score: Tensor, reference: Tensor) -> Tensor:
    return (score > reference.amax(0)) & (_z(score, reference) > FIRES_ABOVE)
