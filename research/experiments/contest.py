"""Experiments on a contrast: logit(a) − logit(b) of the first token of a reply."""

import math
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch

from melbo.features.directions import FeatureSet
from melbo.features.generate import first_tokens, generate
from melbo.models.text.prompts import Prompts, read_texts
from research.experiments.pool import Deal, Pool, Pooled


@dataclass(frozen=True, kw_only=True)
class Contested(Pooled):
    """An experiment on a contrast.

    Attributes:
        contrast: Two strings A and B: the contrast is logit(A) − logit(B) of the first token of
            the reply.
        num_factors: Number of features m.
        validation: Number of validation prompts.
    """

    contrast: tuple[str, str]
    num_factors: int
    validation: int

    def contest(self, learn: int) -> "Contest":
        """The model, the pool and the two tokens.

        Args:
            learn: Largest number of prompts to learn from.
        """
        pool = self.pool(read_texts(self.prompts_file), learn, self.validation)
        return Contest(**vars(pool), pair=first_tokens(pool.lm, self.contrast))


@dataclass(frozen=True)
class Contest(Pool):
    """A pool, and the two tokens of a contrast.

    Attributes:
        pair: Ids of the tokens a and b.
    """

    pair: tuple[int, int]

    def contrasts(self, prompts: Prompts, features: FeatureSet) -> tuple[float, list[float]]:
        """Mean contrast over prompts, of the unsteered model and of each feature.

        Args:
            prompts: The prompts.
            features: The features; one whose logits overflow has a contrast of −∞.
        """
        table = generate(
            self.lm, prompts, features, max_new_tokens=1, contrast=self.pair, progress=False
        )
        by_feature: dict[Any, list[float]] = {}
        for c in table:
            assert c.first is not None
            assert c.first.contrast is not None
            contrast = -math.inf if c.first.overflowed else c.first.contrast
            by_feature.setdefault(c.feature, []).append(contrast)
        return mean(by_feature[None]), [mean(by_feature[i]) for i in range(len(features))]

    def plain(self, prompts: Prompts) -> float:
        """Mean contrast over prompts of the model as it is at the moment, ablated for instance."""
        contrasts: list[float] = []
        for tokens in prompts.tokens:
            ids = torch.tensor([tokens], device=self.lm.device)
            with torch.no_grad():
                logits = self.lm.model(ids).logits[0, -1].float()
            contrasts.append((logits[self.pair[0]] - logits[self.pair[1]]).item())
        return mean(contrasts)

    def best(self, dealt: Deal, features: FeatureSet) -> dict[str, float]:
        """Contrasts of the feature that is best on validation prompts.

        Args:
            dealt: The prompts.
            features: The features to choose from.

        Returns:
            Its contrast on ``"validation"`` and on ``"test"`` prompts, and that of the
            ``"unsteered"`` model on test prompts.
        """
        _, of_each = self.contrasts(dealt.validation, features)
        winner = max(range(len(features)), key=of_each.__getitem__)
        unsteered, (held_out,) = self.contrasts(dealt.test, features[winner])
        return {"validation": of_each[winner], "test": held_out, "unsteered": unsteered}
