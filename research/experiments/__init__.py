"""The published experiments, and new ones: settings in a file, a row for each case, pictures."""

from research.experiments.base import Experiment, run
from research.experiments.bilinear_split import BilinearSplit
from research.experiments.bilinear_trace import BilinearTrace
from research.experiments.depth import Depth
from research.experiments.diversity import Diversity
from research.experiments.elicitation import Elicitation
from research.experiments.embedding_rescale import EmbeddingRescale
from research.experiments.multiplicity import Multiplicity
from research.experiments.pass_at_k import PassAtK
from research.experiments.planted_units import PlantedUnits
from research.experiments.sample_complexity import SampleComplexity
from research.experiments.training_curves import TrainingCurves

#: Experiments by name; each has its settings in ``settings/NAME.toml``.
EXPERIMENTS: dict[str, type[Experiment]] = {
    "sample-complexity": SampleComplexity,
    "training-curves": TrainingCurves,
    "multiplicity": Multiplicity,
    "depth": Depth,
    "password": Elicitation,
    "refusal": Elicitation,
    "backdoor": Elicitation,
    "diversity": Diversity,
    "pass-at-k": PassAtK,
    "bilinear-split": BilinearSplit,
    "planted-units": PlantedUnits,
    "bilinear-trace": BilinearTrace,
    "embedding-rescale": EmbeddingRescale,
}

__all__ = [
    "EXPERIMENTS",
    "BilinearSplit",
    "BilinearTrace",
    "Depth",
    "Diversity",
    "Elicitation",
    "EmbeddingRescale",
    "Experiment",
    "Multiplicity",
    "PassAtK",
    "PlantedUnits",
    "SampleComplexity",
    "TrainingCurves",
    "run",
]
