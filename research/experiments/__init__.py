"""The published experiments, and new ones, as commands: settings in a file, a row for each case, pictures from the rows."""

from research.experiments.base import Experiment, run
from research.experiments.depth import Depth
from research.experiments.diversity import Diversity
from research.experiments.elicitation import Elicitation
from research.experiments.multiplicity import Multiplicity
from research.experiments.pass_at_k import PassAtK
from research.experiments.sample_complexity import SampleComplexity
from research.experiments.training_curves import TrainingCurves

#: By name; each has its settings in ``experiments/NAME.toml``.
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
}

__all__ = [
    "EXPERIMENTS", "Depth", "Diversity", "Elicitation", "Experiment", "Multiplicity", "PassAtK", "SampleComplexity", "TrainingCurves", "run",
]  # fmt: skip
