"""Tiny models whose weights accelerate keeps elsewhere."""

from research.tiny.offloaded import offloaded as offloaded
