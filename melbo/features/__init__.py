"""Sets of features: steering with them, replies under them, and the run folders that keep them."""
