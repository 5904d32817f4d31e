"""Loading of run folders whose kind is not known beforehand."""

from pathlib import Path

from melbo.errors import MelboError
from melbo.features.adapters import AdapterSet
from melbo.features.directions import FeatureSet
from melbo.features.prompt_pair import PromptPair
from melbo.features.run_folder import read_run
from melbo.features.steerable import Steerable
from melbo.models.language_model import LanguageModel


def load_features(folder: str | Path, lm: LanguageModel | None = None) -> FeatureSet:
    """Read a run folder of directions or of adapters; see `FeatureSet.load`.

    Args:
        folder: The run folder.
        lm: Model that the features have to be of, if given.
    """
    kind = AdapterSet if read_run(folder)["kind"] == AdapterSet.kind else FeatureSet
    return kind.load(folder, lm)


def load_steerable(folder: str | Path, lm: LanguageModel) -> Steerable:
    """Read a run folder of any kind.

    Args:
        folder: The run folder.
        lm: Model that the run has to be of.

    Raises:
        MelboError: The run is missing, truncated, of an unknown kind, or of another model.
    """
    kind = read_run(folder)["kind"]
    if kind in (FeatureSet.kind, AdapterSet.kind):
        return load_features(folder, lm)
    if kind == PromptPair.kind:
        return PromptPair.load(folder, lm)
    raise MelboError(
        f"{folder} holds a run of the kind {kind!r}, which this version of melbo does not know: "
        "use the one that wrote it"
    )
