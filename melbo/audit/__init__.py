"""Audit of a model: from replies that something brought out to findings with their evidence."""
