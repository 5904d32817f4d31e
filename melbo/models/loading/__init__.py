"""Where models come from, each checkpoint held against its model."""
