"""Sparse dictionaries measured: on a model, beside another trainer, on known truth."""

from pathlib import Path

#: Folder of the rows.
RESULTS = Path(__file__).parents[1] / "results" / "dictionaries"
#: Folder of dictionaries that are trained on demand, named by their layer.
TRAINED = Path("runs/dictionaries")
