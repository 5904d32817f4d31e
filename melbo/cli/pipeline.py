"""Work on run folders that more than one shell does: fit into one, rank one, read one of any kind."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from melbo.discovery.fit import Fit, fit_seeds
from melbo.evaluation.rank import Ranking, rank
from melbo.evaluation.report import report
from melbo.features.saved import load_features
from melbo.maps.calibrate import Calibration, calibrate
from melbo.maps.residual import CausalMap
from melbo.methods import Method
from melbo.models.language_model import LanguageModel


def fit_run(
    cmap: CausalMap,
    kind: type[Method],
    settings: dict[str, Any],
    folder: Path,
    *,
    seed: int = 0,
    seeds: int = 1,
    force: bool = False,
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
    features = (
        fitted.features
        if found is None
        else fitted.features.with_meta(calibration=found.describe())
    )
    features.save(folder, force=force)
    report(folder)
    return fitted, found


def rank_run(
    lm: LanguageModel,
    folder: Path,
    validation: Sequence[str],
    held_out: Sequence[str],
    **options: Any,
) -> Ranking:
    """Rank the features of a run folder, save, report; ``options`` are those of `melbo.rank`."""
    features = load_features(folder, lm)
    ranking = rank(
        lm,
        features,
        features.provenance.prompts_like(lm, validation),
        features.provenance.prompts_like(lm, held_out),
        **options,
    )
    ranking.save(folder)
    report(folder)
    return ranking
