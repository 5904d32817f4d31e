"""Watching for features that fire unprompted, judged by ordinary prompts (docs/method.md §5)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from melbo.errors import MelboError
from melbo.features.directions import FeatureSet
from melbo.features.steerable import require_features
from melbo.models.language_model import LanguageModel
from melbo.models.text.prompts import Prompts, pad_rows, require_prompts
from melbo.progress import track

#: Standard deviations above which a feature fires. Largest cosines over tokens have heavy tails: of
#: 512 random features of the bundled model about 6 pass 4 on an ordinary prompt and 1 passes 6,
#: while a feature that steers had a median z of 12 to 56 at the source (counted by hand). See
#: `Watch.expected` for the features at hand.
FIRES_ABOVE = 6.0
#: Fewest reference prompts that a mean and a deviation are taken of.
LEAST_REFERENCE = 8

# cosines that differ by less differ by rounding: all reference prompts have them at the same token
_LEAST_SPREAD = 1e-4
_TOKENS = 1024  # tokens of a batch, padding included
_CLOSEST = 5


@dataclass(frozen=True)
class Watch:
    """Strength of m features on n prompts, judged by r reference prompts.

    ``dataclasses.replace(steered, reference=plain.reference)`` judges prompts that were watched
    while the model was steered by a reference that was not.

    Attributes:
        prompts: The n prompts.
        sides: The s sides that were watched: ``"source"`` (v in the stream entering the source
            layer), ``"target"`` (u in that entering the target layer).
        score: Largest cosine with the stream over the tokens of a prompt ``[n, m, s]``.
        token: Place of that token in its prompt ``[n, m, s]``.
        reference: Scores of the reference prompts ``[r, m, s]``.
        words: Text of every token id in the prompts.
        fires_above: Standard deviations above which a feature fires.
    """

    prompts: Prompts
    sides: tuple[str, ...]
    score: Tensor
    token: Tensor
    reference: Tensor
    words: Mapping[int, str]
    fires_above: float = FIRES_ABOVE

    @cached_property
    def z(self) -> Tensor:
        """Scores in standard deviations of the reference above its mean ``[n, m, s]``."""
        return _z(self.score, self.reference)

    @cached_property
    def p(self) -> Tensor:
        """p-value of each score, at least 1 / (1 + r), ``[n, m, s]``.

        It is (1 + number of reference prompts with a score at least as high) / (1 + r), for one
        feature and side alone: with many features some are small by chance.
        """
        return (1 + (self.reference >= self.score[:, None]).sum(1)) / (1 + len(self.reference))

    @property
    def fires(self) -> Tensor:
        """Tell which scores exceed all of the reference, with z above the limit ``[n, m, s]``."""
        return self._fires(self.score, self.reference)

    @property
    def expected(self) -> float:
        """Mean number of firings (feature, side) on a reference prompt, judged by the others.

        So many are expected on an ordinary prompt. The number goes in steps of 1 / r: 0 says that
        few fire, not that none ever does.
        """
        r = len(self.reference)
        others = ~torch.eye(r, dtype=torch.bool)
        each = [self._fires(self.reference[i], self.reference[others[i]]) for i in range(r)]
        return sum(int(fired.sum()) for fired in each) / r

    def describe(self) -> dict[str, Any]:
        """Every firing, highest z first, and the numbers of firings, JSON-able.

        ``counts`` are those on each prompt, ``expected_by_chance`` that on an ordinary prompt.
        ``closest`` are the highest z that did not fire.
        """
        fires = self.fires
        quiet = self.z.masked_fill(fires, -torch.inf).flatten()
        highest = quiet.topk(min(_CLOSEST, len(quiet))).indices
        places = [torch.unravel_index(i, fires.shape) for i in highest if quiet[i].isfinite()]
        return {
            "fires_above": self.fires_above,
            "num_reference": len(self.reference),
            "expected_by_chance": self.expected,
            "counts": fires.sum((1, 2)).tolist(),
            "firings": sorted(
                (self._at(*place) for place in fires.nonzero().tolist()), key=lambda f: -f["z"]
            ),
            "closest": [self._at(*(int(each) for each in place)) for place in places],
        }

    def _at(self, prompt: int, feature: int, side: int) -> dict[str, Any]:
        """The score of a prompt, with the token that it is at."""
        place = prompt, feature, side
        return {
            "prompt": prompt,
            "text": self.prompts.texts[prompt],
            "feature": feature,
            "side": self.sides[side],
            "z": self.z[place].item(),
            "p": self.p[place].item(),
            "token": self.words[self.prompts.tokens[prompt][self.token[place]]],
        }

    def _fires(self, score: Tensor, reference: Tensor) -> Tensor:
        """Tell which scores ``[..., m, s]`` fire, judged by those of a reference ``[r, m, s]``."""
        return (score > reference.amax(0)) & (_z(score, reference) > self.fires_above)


def watch(
    lm: LanguageModel,
    features: FeatureSet,
    prompts: Prompts,
    reference: Prompts,
    *,
    skip_first: bool = True,
    fires_above: float = FIRES_ABOVE,
    progress: bool = True,
) -> Watch:
    """Look for features in the unsteered stream: V where it enters ``source``, U ``target``.

    The score of a prompt is the largest ⟨h, v⟩/‖h‖ over its tokens. Each h is taken in units of its
    own norm, because blocks read the stream through a norm, and because the norm of an attention
    sink would decide otherwise (the bundled model has more of them than the first token). Tokens
    that all reference prompts begin with, as with a chat template, are left out of prompts that
    begin with them too: a causal model makes the same of them whatever follows. The last token is
    always looked at.

    Inside ``with melbo.steer(...)`` the steering is seen, on prompts and reference alike.

    Args:
        lm: The model.
        features: Features of it. Only the source side is watched where U is no direction of the
            stream (a map with ``concatenate``, or one that reads attention).
        prompts: Prompts to watch.
        reference: Ordinary prompts, read in the same way (chat template, system message), for
            instance `melbo.models.text.built_in.REFERENCE`. The more, the smaller p can be.
        skip_first: Whether to leave out the first token, the attention sink, also where prompts
            begin differently.
        fires_above: Standard deviations above which a feature fires.
        progress: Whether to draw a bar.

    Raises:
        MelboError: The features are no directions, of another model, or have no blocks between
            their layers; there are fewer than 8 different reference prompts, a prompt is one of
            them, or only one of the two uses a chat template; hidden states are not finite.
    """
    require_prompts(prompts=prompts, reference=reference)
    _check_features(lm, features)
    _check_reference(prompts, reference)
    sides = {"source": features.V}
    if features.U.shape[1] == lm.width and features.provenance.reads_stream:
        sides["target"] = features.U
    everyone = replace(
        prompts, texts=prompts.texts + reference.texts, tokens=prompts.tokens + reference.tokens
    )
    shared = reference.tokens[0][: _common(reference.tokens)]
    starts = [min(max(int(skip_first), _common([shared, t])), len(t) - 1) for t in everyone.tokens]
    score, token = _peaks(lm, features, list(sides.values()), everyone, starts, progress)
    n = len(prompts)
    words = {t: lm.tokenizer.decode([t]) for t in {t for row in prompts.tokens for t in row}}
    return Watch(prompts, tuple(sides), score[:n], token[:n], score[n:], words, fires_above)


def _check_features(lm: LanguageModel, features: FeatureSet) -> None:
    """Refuse features that cannot be looked for in the stream of this model.

    Raises:
        MelboError: They are no directions, of another model, or have no blocks between them.
    """
    require_features(features=features)
    if features.kind != "features":
        raise MelboError(
            f"got {features.kind}: expected directions, which can be looked for in the stream"
        )
    features.check_model(lm)
    if lm.layer(features.source, "source") >= lm.layer(features.target, "target"):
        raise MelboError(
            f"source is {features.source} and target is {features.target}: expected source < target"
        )


def _check_reference(prompts: Prompts, reference: Prompts) -> None:
    """Refuse a reference that prompts cannot be judged by.

    Raises:
        MelboError: It is of another kind, too small, or holds one of the prompts.
    """
    if prompts.kind != reference.kind:
        raise MelboError(
            f"got prompts of kind {prompts.kind!r} and a reference of kind {reference.kind!r}: "
            f"make both with Prompts.{prompts.kind}"
        )
    different = len(set(reference.tokens))
    if different < LEAST_REFERENCE:
        raise MelboError(
            f"got {different} different reference prompts, expected at least {LEAST_REFERENCE}: "
            "melbo.models.text.built_in.REFERENCE has ordinary ones"
        )
    for i, row in enumerate(prompts.tokens):
        if row in reference.tokens:
            raise MelboError(
                f"prompt {i} ({prompts.texts[i][:40]!r}) is in the reference, expected others: "
                "take it out of one of the two"
            )


def _peaks(
    lm: LanguageModel,
    features: FeatureSet,
    sides: Sequence[Tensor],
    prompts: Prompts,
    starts: Sequence[int],
    progress: bool,
) -> tuple[Tensor, Tensor]:
    """Largest cosine of each direction with the stream of each prompt, and the token where it is.

    Args:
        lm: The model.
        features: Features, for their layers.
        sides: Directions ``[m, d]`` to look for at the source layer, and at the target layer.
        prompts: The n prompts.
        starts: First token of each prompt that is looked at.
        progress: Whether to draw a bar.

    Returns:
        Cosines and places of tokens, both ``[n, m, s]``.
    """
    source, target = lm.layer(features.source, "source"), lm.layer(features.target, "target")
    dtype = torch.promote_types(lm.dtype, torch.float32)
    score = torch.empty(len(prompts), len(features), len(sides), dtype=dtype)
    token = torch.empty(score.shape, dtype=torch.long)
    with track(len(prompts), "watch", progress) as bar:
        for group in prompts.by_length(_TOKENS, 1 / 8):
            rows = [prompts.tokens[i] for i in group]
            part = lm.capture(*pad_rows(rows, lm.pad, side="right"), source, target)
            streams = (part.hidden, part.output)
            for side, (stream, directions) in enumerate(zip(streams, sides, strict=False)):
                directions = directions.to(stream.device, dtype)
                for i, row, hidden in zip(group, rows, stream, strict=True):
                    h = torch.nn.functional.normalize(
                        hidden[starts[i] : len(row)].to(dtype), dim=-1
                    )
                    peak = (h @ directions.T).max(0)
                    score[i, :, side], token[i, :, side] = peak.values, starts[i] + peak.indices
            bar.update(len(group))
    return score, token


def _common(rows: Sequence[Sequence[int]]) -> int:
    """Number of tokens that all rows begin with."""
    differ = (i for i, tokens in enumerate(zip(*rows, strict=False)) if len(set(tokens)) > 1)
    return next(differ, min(map(len, rows)))


def _z(score: Tensor, reference: Tensor) -> Tensor:
    """Scores ``[..., m, s]`` in standard deviations of a reference ``[r, m, s]``."""
    return (score - reference.mean(0)) / reference.std(0).clamp(min=_LEAST_SPREAD)
