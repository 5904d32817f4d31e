"""Means of measurements, and how far to trust them: deviations, errors, intervals, bounds."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

import torch
from scipy.stats import beta, norm
from torch import Tensor


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of one value or more."""
    return fmean(values)


def mean_and_deviation(values: Sequence[float | None]) -> tuple[float, float | None] | None:
    """Mean and standard deviation of the values that are not None.

    The deviation says how much one measurement differs from the next. It is None for a single
    value. The result is None if there is no value at all.
    """
    known = [v for v in values if v is not None]
    return (mean(known), stdev(known) if len(known) > 1 else None) if known else None


def mean_and_error(values: Sequence[float | None]) -> tuple[float, float | None] | None:
    """Mean and standard error of the values that are not None; see `mean_and_deviation`.

    The error says how well the mean itself is known.
    """
    known = mean_and_deviation(values)
    if known is None or known[1] is None:
        return known
    return known[0], known[1] / sum(v is not None for v in values) ** 0.5


def interval(scores: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Confidence interval of a mean.

    Scores that all lie in 0 … 1 get the interval of Wilson (1927), because their variance is at
    most that of a yes or no. Other scores get the normal interval. Where those are all equal, they
    say nothing of a spread, and the interval is wide on purpose: a share of scores that
    ``confidence`` does not rule out (Clopper & Pearson 1934; 3/n where n is large) may differ, and
    each of those by as much as the common score is from zero. One score alone gives no bounds.

    Args:
        scores: One score or more.
        confidence: Probability that the interval covers the mean.
    """
    n, p, z = len(scores), mean(scores), float(norm.ppf(0.5 + confidence / 2))
    if all(0 <= s <= 1 for s in scores):
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)
    if n < 2:
        return -math.inf, math.inf
    if max(scores) - min(scores) <= 1e-12 * abs(p):
        half = at_most(0, n, 1 - confidence) * abs(p)
    else:
        half = z * math.sqrt(sum((s - p) ** 2 for s in scores) / (n - 1) / n)
    return p - half, p + half


def at_most(hits: int, total: int, level: float = 0.05) -> float:
    """Exact one-sided upper bound of a share (Clopper & Pearson 1934).

    Args:
        hits: Number of successes.
        total: Number of trials.
        level: Probability that the bound is wrong.
    """
    return 1.0 if hits == total else float(beta.ppf(1 - level, hits + 1, total - hits))


def at_least(hits: int, total: int, level: float = 0.05) -> float:
    """Exact one-sided lower bound of a share (Clopper & Pearson 1934).

    Args:
        hits: Number of successes.
        total: Number of trials.
        level: Probability that the bound is wrong.
    """
    return 0.0 if hits == 0 else float(beta.ppf(level, hits, total - hits + 1))


def kl(logits: Tensor, others: Tensor) -> float:
    """KL divergence KL(p ‖ q) of two distributions over a vocabulary, in nats.

    Args:
        logits: Logits of p ``[vocabulary]``.
        others: Logits of q ``[vocabulary]``.
    """
    p, q = logits.double().log_softmax(-1), others.double().log_softmax(-1)
    return torch.where(p > -torch.inf, p.exp() * (p - q), 0.0).sum().item()
