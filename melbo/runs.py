"""Work on run folders that more than one shell does: fit into one, rank one, read one of any kind."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .adapters import load_features
from .bank import Bank
from .calibrate import Calibration, calibrate
from .causal_map import CausalMap
from .contrast import PromptPair
from .errors import MelboError
from .features import read_run
from .fit import Fit, fit_seeds
from .methods import Method
from .model import LanguageModel
from .prompts import Prompts
from .rank import Ranking, rank
from .report import report


def load_bank(folder: str | Path, lm: LanguageModel) -> Bank:
    """What steers in a run folder, of whichever kind it is.

    Raises:
        MelboError: Missing, truncated, of a kind that is not known, or of another model.
    """
    kind = read_run(folder)["kind"]
    if kind in ("features", "adapters"):
        return load_features(folder, lm)
    if kind == "contrast":
        return PromptPair.load(folder, lm)
    raise MelboError(f"{folder} holds a run of the kind {kind!r}, which this version of melbo does not know: use the one that wrote it")


def prompts_like(bank: Bank, lm: LanguageModel, texts: Sequence[str]) -> Prompts:
    """Prompts of the kind, and with the system message, that a bank was made with."""
    made = bank.meta.get("map", {}).get("prompts")
    if made is None:
        raise MelboError("this run was not made with prompts, so nothing says how others are to be read: use melbo.generate")
    return Prompts.text(lm, texts) if made["kind"] == "text" else Prompts.chat(lm, texts, made["system"])


def fit_run(
    cmap: CausalMap, kind: type[Method], settings: dict[str, Any], folder: Path, *, seed: int = 0, seeds: int = 1, force: bool = False
) -> tuple[Fit, Calibration | None]:
    """Calibrate if ``settings`` has no scale, fit, save, report.

    Raises:
        MelboError: Settings that cannot work, before any time is spent on them; see `melbo.calibrate` and `melbo.fit`.
    """
    found = None
    if "scale" not in settings:
        kind(**settings, scale=1.0).check(cmap)
        found = calibrate(cmap, seed=seed)
        settings = {**settings, "scale": found.scale}
    fitted = fit_seeds(cmap, kind(**settings), seeds, seed=seed)
    bank = fitted.features if found is None else fitted.features.with_meta(calibration=found.describe())
    bank.save(folder, force=force)
    report(folder)
    return fitted, found


def rank_run(lm: LanguageModel, folder: Path, validation: Sequence[str], held_out: Sequence[str], **options: Any) -> Ranking:
    """Rank the features of a run folder, save, report; ``options`` are those of `melbo.rank`."""
    bank = load_features(folder, lm)
    ranking = rank(lm, bank, prompts_like(bank, lm, validation), prompts_like(bank, lm, held_out), **options)
    ranking.save(folder)
    report(folder)
    return ranking
