"""Evaluation of features: scores of replies, rankings, comparisons, selections, reports."""
