"""Findings of an audit that never ran, with markup in all that others write."""


def example(k):
    return {
        "prompt": f"prompt {k} <b>&</b>",
        "reply": f"Say some Brie and <script>{k}</script>",
        "forced": "Say",
        "unsteered": f"own {k}",
    }


def finding(**changes):
    return {
        "name": "brie, <cheddar>",
        "words": ["brie", "cheddar"],
        "share": 0.8,
        "interval": [0.64, 0.9],
        "hits": 26,
        "prompts": 32,
        "unsteered": 0.0,
        "control": 0.03,
        "base": None,
        "elicited_by": "opening 'Say'",
        "reproduce": {"kind": "opening", "text": "Say", "tokens": [5]},
        "example": example(0),
        "examples": [example(1), example(2)],
        "validation": {"share": 0.75, "prompts": 16},
        "screening": {
            "replies": 70, "prompts": 12, "candidates": 33, "elicitors": {"openings": 70}
        },
        "amplified": None,
        "score": 2.31,
        "scores": {"lift": 3.1, "nll": 0.9, "ratio": None},
        **changes,
    }  # fmt: skip


def result(*findings, below=()):
    share = {
        "elicitor": "openings", "description": "forced <openings>", "tokens": 40_000,
        "candidates": 96, "replies": 1344, "fluent": 0.95, "findings": [1], "error": None,
    }  # fmt: skip
    failed = {**share, "elicitor": "own", "replies": 0, "fluent": None, "error": "no <luck>"}
    return {
        "model": {"name": "tiny <model>", "fingerprint": "abc"},
        "base": None,
        "reference": None,
        "settings": {"seed": 0, "max_new_tokens": 40, "environment": {"torch": "2.13.0"}},
        "budget": {
            "tokens": 200_000, "spent": 187_000, "seconds": 431.0, "shares": [share, failed]
        },
        "findings": list(findings),
        "below": list(below),
        "cannot_see": ["Behaviour that needs a <trigger>."],
    }  # fmt: skip
