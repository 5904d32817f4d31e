"""Sparse dictionaries measured: on a model, beside another trainer, on known truth."""

from pathlib import Path

#: Folder of the rows.
RESULTS = Path(__file__).parents[1] / "results" / "dictionaries"
