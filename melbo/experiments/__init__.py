"""The published experiments, and new ones, as commands: settings in a file, a row for each case, pictures from the rows."""

from .base import Experiment, run
from .sample_complexity import SampleComplexity

#: By name.
EXPERIMENTS: dict[str, type[Experiment]] = {"sample-complexity": SampleComplexity}

__all__ = ["EXPERIMENTS", "Experiment", "SampleComplexity", "run"]
