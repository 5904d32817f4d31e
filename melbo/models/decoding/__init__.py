"""Replies of many rows, with what they have in common read once."""
