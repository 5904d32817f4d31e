"""Tiny models that keep a state beside keys and values, or instead of them."""

from research.tiny.recurrent import RECURRENT as RECURRENT
