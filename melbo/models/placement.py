"""Where a perturbation acts: between which layers, and at which tokens."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from torch import Tensor

Positions = Literal["all", "target"]


@dataclass(frozen=True)
class Placement:
    """Layers and tokens of a perturbation.

    Attributes:
        source: Layer that is perturbed, an index into ``hidden_states``.
        target: Layer that is read.
        target_tokens: How many of a prompt's last tokens are read.
        positions: ``"all"`` steers every token, ``"target"`` of a prompt only those that are read.
        skip_first: Whether each row's first token, the attention sink, is left as it is.
    """

    source: int
    target: int
    target_tokens: int = 3
    positions: Positions = "all"
    skip_first: bool = False

    @property
    def last(self) -> int | None:
        """How many tokens at the end of a prompt are steered; None for all of them."""
        return self.target_tokens if self.positions == "target" else None

    def describe(self) -> dict[str, Any]:
        """All of it, JSON-able, as part of what a map says of itself."""
        return asdict(self)

    @classmethod
    def from_description(cls, saved: Mapping[str, Any]) -> Self:
        """The placement in what `describe` wrote, or a map that holds it; defaults fill gaps."""
        return cls(**{name: saved[name] for name in cls.__dataclass_fields__ if name in saved})


def steered_tokens(index: Tensor, skip_first: bool, last: int | None) -> Tensor:
    """Mask of the tokens that are steered, ``[n, T]``.

    Args:
        index: Place of each token among the real ones of its row, −1 on padding
            (see `melbo.models.prompts.token_index`).
        skip_first: Whether the first token of a row is left out.
        last: How many tokens at the end of each row are steered; None for all of them.
    """
    steered = index >= (1 if skip_first else 0)
    if last is not None:
        steered = steered & (index > index.max(1, keepdim=True).values - last)
    return steered
