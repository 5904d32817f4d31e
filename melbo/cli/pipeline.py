"""Steps that several commands share: fit into a run folder, rank the features of one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from melbo.discovery.fit import Fit, fit_seeds
from melbo.errors import MelboError
from melbo.evaluation.rank import Ranking, rank
from melbo.evaluation.report import report
from melbo.features.directions import FeatureSet
from melbo.features.saved import load_features
from melbo.features.steerable import Steerable
from melbo.maps.calibration import Calibration
from melbo.maps.model_map import ModelMap
from melbo.methods import Method
from melbo.models.language_model import LanguageModel

_Set = TypeVar("_Set", bound=Steerable)


def fit_run(
    map: ModelMap,
    method: type[Method],
    settings: dict[str, Any],
    folder: Path,
    *,
    seed: int = 0,
    seeds: int = 1,
    force: bool = False,
) -> tuple[Fit, Calibration | None]:
    """Fit, save and write the report.

    Args:
        map: The map.
        method: Class of the method.
        settings: Its settings; the scale is calibrated if they have none.
        folder: The run folder.
        seed: Random seed.
        seeds: Number of fits; see `melbo.fit_seeds`.
        force: Whether a run that is there already may be replaced.

    Returns:
        The fit, and the calibration where there was one.
    """
    fitted = fit_seeds(map, method(**settings), seeds, seed=seed)
    fitted.features.save(folder, force=force)
    report(folder)
    return fitted, fitted.calibration


def rank_run(
    lm: LanguageModel,
    folder: Path,
    validation: Sequence[str],
    held_out: Sequence[str],
    **options: Any,
) -> Ranking:
    """Rank the features of a run folder, save the ranking and write the report.

    Args:
        lm: Model of the run.
        folder: The run folder.
        validation: Prompts that the order is chosen on.
        held_out: Prompts that are reported.
        options: Options of `melbo.rank`.
    """
    features = load_features(folder, lm)
    prompts = (
        features.provenance.prompts_like(lm, list(texts)) for texts in (validation, held_out)
    )
    ranking = rank(lm, features, *prompts, folder=folder, **options)
    ranking.save(folder)
    report(folder)
    return ranking


def chosen(
    features: _Set, indices: Sequence[int], average: str | None
) -> tuple[_Set, list[int | str]]:
    """The chosen features (all if none is), or their average, and the name of each.

    Raises:
        MelboError: There is no such feature, or features of this kind have no average.
    """
    rows = [features.check_index(i) for i in indices] or list(range(len(features)))
    if average is None:
        return features[rows], list(rows)
    if not isinstance(features, FeatureSet):
        raise MelboError("this run holds no directions: leave --average out")
    names = ", ".join(map(str, indices)) or "all"
    return features[rows].averaged(average), [f"{average} of {names}"]
