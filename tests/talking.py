"""Conversations with a tiny model, and the same by hand."""

from contextlib import nullcontext

import torch
from toys import directions

from melbo import FeatureSet
from melbo.cli.chat import Chat
from melbo.models.text.prompts import Prompts


def features_of(lm, meta):
    V, U = directions(3, lm.width), directions(3, lm.width, 1)
    return FeatureSet(V, U, torch.ones(3, dtype=torch.float64), 4.0, 1, 3, meta)


def some_features(lm, system=None, **more):
    prompts = Prompts(("yes",), ((1, 2, 3),), "chat", system)
    return features_of(lm, {"map": {"prompts": prompts.describe(), **more}})


def a_chat(lm, feature=None, strength=1.0, max_new_tokens=5, **more):
    return Chat(lm, some_features(lm, **more), feature, strength, max_new_tokens)


def by_hand(lm, turns, n=5, steering=None):
    """Greedy reply to a conversation, one token at a time, without a cache."""
    told = lm.tokenizer.apply_chat_template(turns, tokenize=True, add_generation_prompt=True)
    ids = told["input_ids"]
    start = len(ids)
    with steering or nullcontext():
        for _ in range(n):
            ids.append(lm.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item())
            if ids[-1] in lm.eos:
                break
    return lm.tokenizer.decode(ids[start:], skip_special_tokens=True)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}
