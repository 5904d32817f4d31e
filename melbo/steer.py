"""Steering: what was found, put where it was trained, for as long as a ``with`` block lasts."""

from contextlib import AbstractContextManager

import torch

from .edit import Where, edit
from .errors import MelboError
from .features import Bank
from .model import LanguageModel


def steer(lm: LanguageModel, *features: Bank, strength: float = 1.0, where: Where = "all", per_row: bool = False) -> AbstractContextManager[None]:
    """Steer with one feature or several at once: a direction is added, strength·R·v, at the layer and the tokens it was fitted at.

    Args:
        lm: The model the features were fitted on.
        features: Sets of one feature each (``bank[3], bank[7]``), added together; with ``per_row``, sets with a feature for every row of the
            batches that will be run.
        strength: 1 is the scale of the fit; negative pushes the other way.
        where: ``"all"`` (as in the fit), ``"prompt"`` or ``"generated"`` tokens.
        per_row: Feature i steers row i.

    Returns:
        A context manager.

    Raises:
        MelboError: Features of another model, a set of several without ``per_row``, or a strength that is not finite.
    """
    for bank in features:
        bank.check_model(lm)
        if len(bank) != 1 and not per_row:
            raise MelboError(f"got a set of {len(bank)} features: pass bank[3], several as bank[3], bank[7], or per_row=True for one a row")
    if per_row:
        return edit(lm, *(bank.edit(torch.arange(len(bank)), torch.full((len(bank),), strength), where) for bank in features))
    return edit(lm, *(bank.edit(strength=strength, where=where) for bank in features))
