"""Speed: measurements beside the machine's own matrix products, and scripts for single questions.

``python -m research speed`` measures the usual things; each script is a module of its own that
``python -m research.speed.NAME`` runs. Results are in ``research/results/speed``.
"""
