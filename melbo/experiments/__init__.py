"""The published experiments, and new ones, as commands: settings in a file, a row for each case, pictures from the rows."""

from .base import Experiment, run
from .depth import Depth
from .diversity import Diversity
from .elicitation import Elicitation
from .multiplicity import Multiplicity
from .pass_at_k import PassAtK
from .sample_complexity import SampleComplexity
from .training_curves import TrainingCurves

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
