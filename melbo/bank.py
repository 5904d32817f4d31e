"""What every set of features can do, whatever its features are: be counted, cut, checked against a model, and steer."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from .edit import Edit, Several, Where
from .errors import MelboError
from .model import LanguageModel


class Bank(ABC):
    """A set of features, each of which steers with a strength.

    Attributes:
        meta: Where it comes from: model, map, method, seed, history, versions (JSON-able).
    """

    meta: Mapping[str, Any]

    @abstractmethod
    def __len__(self) -> int:
        """Number of features m."""

    @abstractmethod
    def take(self, rows: Tensor) -> Self:
        """Those features, as a set; ``rows`` are in range."""

    @abstractmethod
    def edit(self, which: Tensor | None = None, strength: float | Tensor = 1.0, where: Where = "all") -> Edit:
        """What steering does to the model.

        Args:
            which: Feature ``which[i]`` steers row i of a batch; the only one steers all rows if left out.
            strength: 1 is the scale of the fit, negative pushes the other way; with ``which`` perhaps one for each row ``[rows]``.
            where: At which tokens.

        Raises:
            MelboError: A strength that is not finite, or several features and no ``which``.
        """

    def join(self, other: Self) -> Self:
        """These features, then the others.

        Raises:
            MelboError: They are of a kind that cannot be joined.
        """
        raise MelboError(f"{type(self).__name__} cannot be joined with others: take them one by one")

    def random(self, num: int, generator: torch.Generator) -> Self:
        """The control: ``num`` random ones of the same norm in the same place.

        Raises:
            MelboError: They are of a kind that has none.
        """
        raise MelboError(f"there is no random control for {type(self).__name__}: use sample or chat")

    def __getitem__(self, which: int | slice | Sequence[int] | Tensor) -> Self:
        """Some of the features, as a set; one for an integer.

        Raises:
            MelboError: One that is not there.
        """
        if isinstance(which, slice):
            return self.take(torch.arange(len(self))[which])
        rows = torch.atleast_1d(torch.as_tensor(which))
        if rows.dtype == torch.bool:
            rows = rows.nonzero()[:, 0]
        return self.take(torch.tensor([self.check_index(i + len(self) if i < 0 else i) for i in rows.tolist()], dtype=torch.long))

    def __iter__(self) -> Iterator[Self]:
        """The features one by one."""
        return (self[i] for i in range(len(self)))

    def check_index(self, index: int) -> int:
        """``index`` if there is such a feature.

        Raises:
            MelboError: There is not.
        """
        if not 0 <= index < len(self):
            raise MelboError(f"got feature {index}, there are {len(self)}: expected 0 to {len(self) - 1}")
        return index

    def check_model(self, lm: LanguageModel) -> None:
        """Refuse a model these features were not fitted on.

        Raises:
            MelboError: Other weights; names both models.
        """
        check_fitted_on(self.meta, lm)

    def check_edit(self, which: Tensor | None, strength: float | Tensor) -> None:
        """What `edit` refuses.

        Raises:
            MelboError: A strength that is not finite, or several features and no ``which``.
        """
        check_strength(strength)
        if which is None and len(self) != 1:
            raise MelboError(f"got a set of {len(self)} features to steer every row with: pass one of them, bank[3]")


class Mixed(Bank):
    """Sets of different kinds as one, feature after feature; ``meta`` is that of the first.

    In a batch every kind acts on every row, at strength zero on those whose feature is of another.
    """

    def __init__(self, banks: Sequence[Bank], rows: Tensor | None = None) -> None:
        self.banks, self.meta = tuple(banks), banks[0].meta
        every = torch.cat([torch.stack([torch.full((len(b),), i), torch.arange(len(b))], 1) for i, b in enumerate(banks)])
        self._rows = every if rows is None else rows  # [m, 2]: which set, which feature of it

    def __len__(self) -> int:
        """Number of features m."""
        return len(self._rows)

    def take(self, rows: Tensor) -> "Mixed":
        """See `Bank.take`."""
        return Mixed(self.banks, self._rows[rows])

    def edit(self, which: Tensor | None = None, strength: float | Tensor = 1.0, where: Where = "all") -> Edit:
        """See `Bank.edit`."""
        self.check_edit(which, strength)
        of, at = self._rows[torch.zeros(1, dtype=torch.long) if which is None else which].unbind(1)
        if which is None:
            return self.banks[int(of)][int(at)].edit(strength=strength, where=where)
        strengths = torch.as_tensor(strength, dtype=torch.float32).expand(len(of))
        return Several(tuple(bank.edit(at * (of == i), strengths * (of == i), where) for i, bank in enumerate(self.banks)))

    def check_model(self, lm: LanguageModel) -> None:
        """See `Bank.check_model`; every set."""
        for bank in self.banks:
            bank.check_model(lm)


def check_strength(strength: float | Tensor) -> None:
    """Refuse a strength that is not a finite number.

    Raises:
        MelboError: It is not.
    """
    wrong = [s for s in torch.as_tensor(strength).flatten().tolist() if not math.isfinite(s)]
    if wrong:
        raise MelboError(f"strength is {wrong[0]}: expected a finite number; 1 is the scale of the fit")


def check_fitted_on(meta: Mapping[str, Any], lm: LanguageModel) -> None:
    """Refuse a model that is not the one of ``meta``.

    Raises:
        MelboError: Other weights; names both models.
    """
    fitted = meta.get("map", {}).get("model")
    if fitted is not None and fitted["sha256"] != lm.fingerprint:
        raise MelboError(
            f"these features were fitted on {fitted['name']} (weights {fitted['sha256'][:8]}), "
            f"this is {lm.name} (weights {lm.fingerprint[:8]}): load the model they belong to, in float32 or bfloat16"
        )
