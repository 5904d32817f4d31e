"""Directions beside each other: similar and opposite ones, clusters, places on a map."""

import numpy as np
import torch
from torch import Tensor

from melbo.maths.geometry import clusters, unit_rows

_PERPLEXITY = 30.0
# t-SNE needs a few points to each perplexity
_LEAST = 5


def alike(V: Tensor, index: int, num: int) -> tuple[list[tuple[int, float]], ...]:
    """Most similar and most opposite directions to one of them.

    Args:
        V: Directions ``[m, d]``.
        index: The one.
        num: Number of each at most.

    Returns:
        Those with the largest positive cosines, and those with the largest negative ones, each as
        index and cosine, nearest first.
    """
    rows = unit_rows(V)
    cosines = rows @ rows[index]
    order = [i for i in cosines.argsort(descending=True, stable=True).tolist() if i != index]
    found = [(i, float(cosines[i])) for i in order]
    return (
        [(i, cosine) for i, cosine in found if cosine > 0][:num],
        [(i, cosine) for i, cosine in reversed(found) if cosine < 0][:num],
    )


def nearest(v: Tensor, V: Tensor) -> tuple[int, float]:
    """Index of the direction that is most like another one, and their cosine.

    Args:
        v: The other one ``[d]``.
        V: Directions ``[m, d]``.
    """
    cosines = unit_rows(V) @ unit_rows(v)[0]
    best = int(cosines.argmax())
    return best, float(cosines[best])


def cluster_numbers(V: Tensor, threshold: float = 0.5) -> list[int | None]:
    """Number of each direction's cluster, from 0 for the largest; None for one that is alone.

    Args:
        V: Directions ``[m, d]``.
        threshold: See `melbo.maths.geometry.clusters`.
    """
    numbers: list[int | None] = [None] * len(V)
    for number, rows in enumerate(clusters(V, threshold)):
        if len(rows) > 1:
            for i in rows.tolist():
                numbers[i] = number
    return numbers


def places(V: Tensor, seed: int = 0) -> list[tuple[float, float]]:
    """Places of directions on a map, neighbours by cosine near each other.

    They come from t-SNE (van der Maaten & Hinton 2008); of fewer than five directions, from
    principal components. Distances between groups that are far apart mean nothing.

    Args:
        V: Directions ``[m, d]``.
        seed: Random seed.
    """
    rows = unit_rows(V)
    centred = rows - rows.mean(0)
    left, sizes, _ = torch.linalg.svd(centred, full_matrices=False)
    flat = np.zeros((len(rows), 2))
    main = (left * sizes)[:, :2].numpy()
    flat[:, : main.shape[1]] = main
    if len(rows) >= _LEAST:
        # imported here: it is slow to import, and a map is not always looked at
        from sklearn.manifold import TSNE

        start = flat / max(float(flat[:, 0].std()), 1e-12) * 1e-4
        perplexity = min(_PERPLEXITY, (len(rows) - 1) / 3)
        tsne = TSNE(metric="cosine", init=start, perplexity=perplexity, random_state=seed)
        flat = tsne.fit_transform(rows.numpy())
    return [(float(x), float(y)) for x, y in flat]
