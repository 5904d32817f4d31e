"""Random numbers by key and place, the same whichever of them are asked for and in which order."""

from hashlib import sha256

import numpy as np
import torch
from torch import Tensor


def key_of(*parts: object) -> int:
    """Key of 63 bits that some values have in common: a seed, the number of a candidate, a name.

    Args:
        parts: The values, told apart by their ``repr``.
    """
    digest = sha256("\n".join(map(repr, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def uniform(key: int, place: int) -> float:
    """Number from [0, 1).

    Args:
        key: See `key_of`.
        place: Number of the draw under this key, from 0.
    """
    return float(_generator(key, place).random())


def gaussian(key: int, place: int, num: int) -> Tensor:
    """Independent standard normal numbers ``[num]``, float32.

    Args:
        key: See `key_of`.
        place: Number of the draw under this key, from 0.
        num: How many.
    """
    return torch.from_numpy(_generator(key, place).standard_normal(num, dtype=np.float32))


def _generator(key: int, place: int) -> np.random.Generator:
    # Philox counts: each key and each counter begins a stream of its own (Salmon et al. 2011). The
    # lowest word counts on within a stream.
    return np.random.Generator(np.random.Philox(key=key, counter=[0, place, 0, 0]))
