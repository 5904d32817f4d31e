"""Maps Δ from a perturbation of a model to the change of a late layer, and their derivatives."""
