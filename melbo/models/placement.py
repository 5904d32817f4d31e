"""Where a perturbation acts: between which layers, and at which tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from torch import Tensor

from melbo.errors import MelboError

Positions = Literal["all", "target"]
#: Source and target layer unless told otherwise, as shares of a model's depth.
USUAL_SHARES = (8 / 30, 20 / 30)


@dataclass(frozen=True)
class Placement:
    """Layers and tokens of a perturbation.

    Attributes:
        source: Layer that is perturbed, an index into ``hidden_states``.
        target: Layer that is read.
        target_tokens: Number of last tokens of a prompt that are read.
        positions: ``"all"`` steers every token, ``"target"`` only those tokens of a prompt that are
            read.
        skip_first: Whether each row's first token, the attention sink, is left as it is.
    """

    source: int
    target: int
    target_tokens: int = 3
    positions: Positions = "all"
    skip_first: bool = False

    @property
    def last(self) -> int | None:
        """Number of tokens at the end of a prompt that are steered; None for all of them."""
        return self.target_tokens if self.positions == "target" else None

    def check(self, lengths: Sequence[int]) -> None:
        """Refuse layers in another order, tokens that are not there, and short prompts.

        Args:
            lengths: Number of tokens of each prompt.

        Raises:
            MelboError: There are such.
        """
        if self.source >= self.target:
            raise MelboError(
                f"source is {self.source} and target is {self.target}: expected source < target"
            )
        if self.target_tokens < 1:
            raise MelboError(f"target_tokens is {self.target_tokens}: expected at least 1")
        if self.positions not in ("all", "target"):
            raise MelboError(f"positions is {self.positions!r}: expected 'all' or 'target'")
        shortest = min(lengths)
        need = max(self.target_tokens, 2 if self.skip_first else 1)
        if shortest < need:
            raise MelboError(
                f"prompt {lengths.index(shortest)} has {shortest} tokens, fewer than the "
                f"{need} needed: lengthen it, use a chat template or lower target_tokens "
                f"({self.target_tokens})"
            )

    def describe(self) -> dict[str, Any]:
        """Fields by name, JSON-able, as maps include them in their own description."""
        return asdict(self)

    @classmethod
    def from_description(cls, saved: Mapping[str, Any]) -> Self:
        """Read a placement from what `describe` wrote.

        Args:
            saved: Result of `describe`, or a larger description that includes it; fields that it
                lacks take their defaults.
        """
        return cls(**{name: saved[name] for name in cls.__dataclass_fields__ if name in saved})


def steered_tokens(index: Tensor, skip_first: bool, last: int | None) -> Tensor:
    """Mask of the tokens that are steered, ``[n, T]``.

    Args:
        index: Index of each token among the real ones of its row ``[n, T]``, −1 on padding (see
            `melbo.models.text.prompts.token_index`).
        skip_first: Whether the first token of a row is left out.
        last: Number of tokens at the end of each row that are steered; None for all of them.
    """
    steered = index >= (1 if skip_first else 0)
    if last is not None:
        steered = steered & (index > index.max(1, keepdim=True).values - last)
    return steered


def layers_at(depth: int, shares: tuple[float, float] = USUAL_SHARES) -> tuple[int, int]:
    """Source and target layer at shares of a model's depth, with a block between them at least.

    Args:
        depth: Number of blocks.
        shares: Shares of the depth.
    """
    source, target = (round(depth * share) for share in shares)
    # of few blocks both shares can be the same one
    target = min(max(target, source + 1), depth)
    return min(source, target - 1), target
