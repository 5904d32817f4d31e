"""Architectures by name."""

from melbo.dictionary.base import Dictionary
from melbo.dictionary.gated import Gated
from melbo.dictionary.relu import ReLU
from melbo.dictionary.rescale_and_shift import RescaleAndShift
from melbo.dictionary.stepless import Stepless
from melbo.dictionary.top_k import TopK
from melbo.errors import MelboError

_PENALISED: dict[str, type[Dictionary]] = {
    "relu": ReLU,
    "gated": Gated,
    "stepless": Stepless,
    "rescale-and-shift": RescaleAndShift,
}
#: Names of the architectures.
ARCHITECTURES = ("topk", *_PENALISED)


def make(name: str, d: int, m: int, k: int | None = None, seed: int = 0) -> Dictionary:
    """Make a dictionary that is not trained yet.

    Args:
        name: Name of the architecture.
        d: Width of the activations.
        m: Number of latents.
        k: topk: most latents that are active at once; 32 if left out.
        seed: Random seed of the directions.

    Raises:
        MelboError: There is no such architecture, k does not fit, or another one than topk has it.
    """
    if name == "topk":
        return TopK(d, m, 32 if k is None else k, seed)
    if name not in _PENALISED:
        raise MelboError(f"got the architecture {name!r}: expected {', '.join(ARCHITECTURES)}")
    if k is not None:
        raise MelboError(f"k is {k}, but {name} has no k: leave it out, its sparsity is set by λ")
    return _PENALISED[name](d, m, seed)
