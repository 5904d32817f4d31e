"""From prompts to features: fits, recipes, controls, and the supervised baseline CAA."""
