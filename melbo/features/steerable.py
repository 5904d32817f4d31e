"""Sets of features of any kind: indexing, checks against a model, and steering."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from melbo.errors import MelboError, require
from melbo.features.provenance import Provenance
from melbo.models.edits import Edit, EditSequence, Where, edit
from melbo.models.language_model import LanguageModel

_INDICES = "expected an integer, several in a list, a slice or a mask"


class Steerable(ABC):
    """A set of features, each of which can steer a model with a strength.

    Attributes:
        meta: Origin of the features: model, map, method, seed, history, versions (JSON-able).
    """

    meta: Mapping[str, Any]

    @abstractmethod
    def __len__(self) -> int:
        """Number of features m."""

    @abstractmethod
    def take(self, rows: Tensor) -> Self:
        """Some of the features, as a set.

        Args:
            rows: Indices of the features ``[k]``, all in range.
        """

    @abstractmethod
    def edit(
        self,
        which: Tensor | None = None,
        strength: float | Tensor = 1.0,
        where: Where = "all",
    ) -> Edit:
        """Edit of the model by which the features steer.

        Args:
            which: Indices ``[rows]``; feature ``which[i]`` steers row i of a batch. If left out,
                the only feature of the set steers all rows.
            strength: Multiple of the fit's scale, negative to push in the opposite direction; with
                ``which`` there may be one for each row ``[rows]``.
            where: Tokens to steer.

        Raises:
            MelboError: A strength is not finite, or there are several features and no ``which``.
        """

    @cached_property
    def provenance(self) -> Provenance:
        """Origin of the features, as values read from ``meta``."""
        return Provenance.of(self.meta)

    def join(self, other: Self) -> Self:
        """These features, then the others.

        Raises:
            MelboError: Features of this kind cannot be joined.
        """
        raise MelboError(
            f"{type(self).__name__} cannot be joined with others: take them one by one"
        )

    def random(self, num: int, generator: torch.Generator) -> Self:
        """Random features as a control, of the same norm and placement.

        Args:
            num: Number of random features.
            generator: Source of everything random.

        Raises:
            MelboError: Features of this kind have no random control.
        """
        raise MelboError(
            f"there is no random control for {type(self).__name__}: use sample or chat"
        )

    def __getitem__(self, which: int | slice | Sequence[int] | Tensor) -> Self:
        """Some of the features, as a set; a set of one for an integer.

        Raises:
            MelboError: There is no such feature, an index is no integer, or a mask has another
                length.
        """
        if isinstance(which, slice):
            return self.take(torch.tensor(range(len(self))[which], dtype=torch.long))
        try:
            rows = torch.as_tensor(which)
        except (TypeError, ValueError, RuntimeError) as err:
            raise MelboError(f"got the index {which!r}: {_INDICES}") from err
        if rows.dtype == torch.bool:
            if rows.shape != (len(self),):
                raise MelboError(
                    f"got a mask of shape {list(rows.shape)}: "
                    f"expected a truth value for each of {len(self)} features"
                )
            rows = rows.nonzero()[:, 0]
        # an empty list becomes a tensor of floats
        if rows.ndim > 1 or (rows.numel() and (rows.is_floating_point() or rows.is_complex())):
            raise MelboError(f"got the index {which!r}: {_INDICES}")
        indices = [
            i + len(self) if -len(self) <= i < 0 else self.check_index(i)
            for i in rows.reshape(-1).tolist()
        ]
        return self.take(torch.tensor(indices, dtype=torch.long))

    def __iter__(self) -> Iterator[Self]:
        """The features one by one, each a set of one."""
        return (self[i] for i in range(len(self)))

    def check_index(self, index: int) -> int:
        """Refuse the index of a feature that does not exist, and hand back any other.

        Raises:
            MelboError: There is no such feature.
        """
        if not 0 <= index < len(self):
            raise MelboError(
                f"got feature {index}, there are {len(self)}: expected 0 to {len(self) - 1}"
            )
        return index

    def check_model(self, lm: LanguageModel) -> None:
        """Refuse a model that these features were not fitted on.

        Raises:
            MelboError: The weights differ; names both models.
        """
        self.provenance.check_model(lm)

    def check_edit(self, which: Tensor | None, strength: float | Tensor) -> None:
        """Refuse arguments that `edit` cannot work with.

        Args:
            which: See `edit`.
            strength: See `edit`.

        Raises:
            MelboError: A strength is not finite, or there are several features and no ``which``.
        """
        check_strength(strength)
        if which is None and len(self) != 1:
            raise MelboError(
                f"got a set of {len(self)} features to steer every row with: "
                "pass one of them, features[3]"
            )


class Mixed(Steerable):
    """Sets of different kinds as one, feature after feature; ``meta`` is that of the first set.

    In a batch every set acts on every row, with strength zero where the feature is of another set.

    Args:
        sets: The sets.
        rows: For each feature ``[m, 2]``, the index of its set and its index within that set; all
            features if left out.
    """

    def __init__(self, sets: Sequence[Steerable], rows: Tensor | None = None) -> None:
        self.sets, self.meta = tuple(sets), sets[0].meta
        every = [
            torch.stack([torch.full((len(each),), i), torch.arange(len(each))], 1)
            for i, each in enumerate(sets)
        ]
        self._rows = torch.cat(every) if rows is None else rows

    def __len__(self) -> int:
        """Number of features m."""
        return len(self._rows)

    def take(self, rows: Tensor) -> "Mixed":
        """See `Steerable.take`."""
        return Mixed(self.sets, self._rows[rows])

    def alone(self, i: int) -> Steerable:
        """Feature ``i`` as a set of its own kind."""
        number, feature = self._rows[i].tolist()
        only: Steerable = self.sets[number][[feature]]
        return only

    def edit(
        self,
        which: Tensor | None = None,
        strength: float | Tensor = 1.0,
        where: Where = "all",
    ) -> Edit:
        """See `Steerable.edit`."""
        self.check_edit(which, strength)
        if which is None:
            number, feature = self._rows[0].tolist()
            only: Steerable = self.sets[number][feature]
            return only.edit(strength=strength, where=where)
        number, feature = self._rows[which].unbind(1)
        strengths = torch.as_tensor(strength, dtype=torch.float32).expand(len(number))
        return EditSequence(
            tuple(
                each.edit(feature * (number == i), strengths * (number == i), where)
                for i, each in enumerate(self.sets)
            )
        )

    def check_model(self, lm: LanguageModel) -> None:
        """See `Steerable.check_model`; checks every set."""
        for each in self.sets:
            each.check_model(lm)


def steer(
    lm: LanguageModel,
    *features: Steerable,
    strength: float = 1.0,
    where: Where = "all",
    per_row: bool = False,
) -> AbstractContextManager[None]:
    """Steer a model inside a ``with`` block, with one feature or several at once.

    A direction is added, strength·R·v, at the layer and the tokens at which it was fitted; the
    model is exactly as before when the block is left.

    Args:
        lm: The model that the features were fitted on.
        features: Sets of one feature each (``features[3], features[7]``), which all act; with
            ``per_row``, sets with one feature for every row of the batches that will be run.
        strength: Multiple of the fit's scale; negative pushes in the opposite direction.
        where: ``"all"`` (as in the fit), ``"prompt"`` or ``"generated"`` tokens.
        per_row: Whether feature i steers row i only.

    Raises:
        MelboError: The features are of another model, there are several without ``per_row``, or
            the strength is not finite.
    """
    for each in features:
        require_features(features=each)
        each.check_model(lm)
        if len(each) != 1 and not per_row:
            raise MelboError(
                f"got a set of {len(each)} features: pass features[3], several as features[3], "
                "features[7], or per_row=True for one a row"
            )
    if not per_row:
        return edit(lm, *(each.edit(strength=strength, where=where) for each in features))
    edits = [
        each.edit(torch.arange(len(each)), torch.full((len(each),), strength), where)
        for each in features
    ]
    return edit(lm, *edits)


def require_features(**given: object) -> None:
    """Refuse an index or a list where a set of features belongs.

    Args:
        given: Values of the arguments by their names.
    """
    require(Steerable, "pass a set of features, fit.features[3] say, not its index", **given)


def check_strength(strength: float | Tensor) -> None:
    """Refuse a strength that is not a finite number.

    Raises:
        MelboError: The strength, or one of several, is not finite.
    """
    for value in torch.as_tensor(strength).flatten().tolist():
        if not math.isfinite(value):
            raise MelboError(
                f"strength is {value}: expected a finite number; 1 is the scale of the fit"
            )
