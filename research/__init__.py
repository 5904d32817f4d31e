"""Studies beside the package, with their results: planted behaviours, experiments, speed."""
