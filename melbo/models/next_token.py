"""Edits of the choice of the next token: replies that begin as told, and replies that are drawn.

They act on the model's logits alone. Rows of one prompt therefore read it once, and greedy decoding
gives each row what it would have alone, whatever runs beside it.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from melbo.errors import MelboError
from melbo.maths.keyed_random import uniform
from melbo.models.edits import Edit, Removable
from melbo.models.language_model import LanguageModel
from melbo.models.tokens import Tokens


class NextToken(Edit):
    """Choice of the token that follows, row by row, by raising its logit above all others."""

    @property
    def layer(self) -> int:
        """The last block: none is touched, so that rows share all the others."""
        return -2

    @property
    def prefix_safe(self) -> bool:
        """Tell that places are counted from the first token of a row."""
        return True

    @abstractmethod
    def __len__(self) -> int:
        """Number of rows."""

    @abstractmethod
    def choose(self, row: int, place: int, logits: Tensor) -> int | None:
        """Token that follows.

        Args:
            row: Number of the row.
            place: Index of the token before it among the real ones of its row, from 0.
            logits: Logits of the token that follows ``[vocabulary]``.

        Returns:
            Its id; None to leave the model's own choice.
        """

    def attach(self, lm: LanguageModel, tokens: Tokens) -> list[Removable]:
        """See `Edit.attach`."""

        def hook(model: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            last = out.logits[:, -1]
            if len(last) != len(self):
                raise MelboError(
                    f"got {len(self)} choices for a batch of {len(last)} rows: "
                    "expected one for each"
                )
            places = tokens.index[:, -1].expand(len(last)).tolist()
            for row, place in enumerate(places):
                chosen = self.choose(row, place, last[row])
                if chosen is not None:
                    highest = last[row].max()
                    # half precision would round a smaller step away
                    last[row, chosen] = highest + highest.abs() / 16 + 1

        return [lm.model.register_forward_hook(hook)]


@dataclass(frozen=True)
class Force(NextToken):
    """Replies that begin with given tokens and go on as the model would.

    Attributes:
        openings: Tokens that each row's reply begins with; none leave it alone.
        lengths: Number of tokens of each row's prompt.
    """

    openings: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.openings)

    def rows(self, which: Tensor) -> "Force":
        """See `Edit.rows`."""
        return Force(*(_taken(each, which) for each in (self.openings, self.lengths)))

    def choose(self, row: int, place: int, logits: Tensor) -> int | None:
        """See `NextToken.choose`."""
        at, opening = place + 1 - self.lengths[row], self.openings[row]
        return opening[at] if 0 <= at < len(opening) else None


@dataclass(frozen=True)
class Draw(NextToken):
    """Replies drawn from softmax(logits / temperature), each row by numbers of its own.

    The token at a place depends on the row's key, the place and the logits only.

    Attributes:
        temperatures: Temperature of each row, above 0.
        keys: Key of each row's random numbers (see `melbo.maths.keyed_random.key_of`).
    """

    temperatures: tuple[float, ...]
    keys: tuple[int, ...]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.keys)

    def rows(self, which: Tensor) -> "Draw":
        """See `Edit.rows`."""
        return Draw(*(_taken(each, which) for each in (self.temperatures, self.keys)))

    def choose(self, row: int, place: int, logits: Tensor) -> int | None:
        """See `NextToken.choose`; inverts the cumulative distribution at one uniform number."""
        shares = (logits.double() / self.temperatures[row]).softmax(-1).cumsum(-1)
        if not torch.isfinite(shares[-1]):
            return None
        drawn = shares[-1] * uniform(self.keys[row], place)
        return min(int(torch.searchsorted(shares, drawn, right=True)), len(shares) - 1)


def _taken(each: Sequence[Any], which: Tensor) -> tuple[Any, ...]:
    return tuple(each[i] for i in which.tolist())
