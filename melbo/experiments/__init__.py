"""The published experiments, and new ones, as commands: settings in a file, a row for each case, pictures from the rows."""

from .base import Experiment, run
from .depth import Depth
from .multiplicity import Multiplicity
from .sample_complexity import SampleComplexity

#: By name.
EXPERIMENTS: dict[str, type[Experiment]] = {"sample-complexity": SampleComplexity, "multiplicity": Multiplicity, "depth": Depth}

__all__ = ["EXPERIMENTS", "Depth", "Experiment", "Multiplicity", "SampleComplexity", "run"]
