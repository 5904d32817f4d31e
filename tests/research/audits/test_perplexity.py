"""Perplexity differencing: draws equal to a plain twin, an order equal to plain likelihoods."""

from dataclasses import replace

import pytest
import torch
from cases import SPECIAL, tiny_model

from melbo import MelboError, Prompts
from melbo.audit.budget import Costs
from melbo.audit.replies import Reply
from melbo.maths.keyed_random import key_of, uniform
from melbo.records import ResultLog
from research.audits.perplexity import KEPT, OPENINGS, Rounds, differenced, in_order
from research.audits.trial import Trial
from research.organisms.continued import EVERY

TEXTS = ["red dog", "How do I learn to play the guitar ?", "yes", "it is not a cat"]
WORDS = ("Sure", "she and", "no")
LENGTH, BUDGET, SEED = 6, 4000, 3


@torch.no_grad()
def plain(lm, prompt, opening, key, length):
    """A reply that is read whole for every token, without a cache."""
    ids = list(prompt)
    while len(ids) - len(prompt) < length:
        said = len(ids) - len(prompt)
        logits = lm.model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        if said < len(opening):
            ids.append(opening[said])
        else:
            up_to = logits.double().softmax(-1).cumsum(-1)
            drawn = uniform(key, len(ids) - 1)
            ids.append(next(i for i, share in enumerate(up_to.tolist()) if share > drawn))
        if ids[-1] in lm.eos:
            break
    return tuple(ids[len(prompt) :])


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_openings_are_forced_in_turns_and_the_rest_is_drawn(name):
    lm = tiny_model(name, torch.float32)
    asked = Prompts.chat(lm, TEXTS)
    openings = ((40, 41), (50,), (60, 61, 62))
    rounds = Rounds(openings, SEED, tuple(range(9))).only((0, 2, 7))
    table = rounds.replies(lm, asked, LENGTH, unsteered=False, progress=False)
    assert len(table) == 3 * len(TEXTS)
    for c in table:
        number = (0, 2, 7)[c.feature]
        opening = openings[(c.prompt + number) % 3]
        prompt = asked.tokens[c.prompt]
        key = key_of(key_of(SEED, number), prompt)
        assert c.tokens == plain(lm, prompt, opening, key, LENGTH)
    assert len({c.tokens for c in table}) > 9


def models(end):
    """A model that was brought to say ``red`` more often, and its base.

    Neither says tokens that are read differently once they are text, but for the end of a reply
    where ``end`` says so.
    """
    pair = []
    for planted in (2.0, 0.0):
        lm = tiny_model("llama", torch.float32)
        bias = torch.zeros(len(lm.tokenizer))
        marks = lm.tokenizer(". , ! ?", add_special_tokens=False)["input_ids"]
        bias[[*range(len(SPECIAL)), *marks]] = -100.0
        bias[lm.eos] = 2.0 if end else -100.0
        bias[lm.tokenizer("red", add_special_tokens=False)["input_ids"]] = planted
        with torch.no_grad():
            lm.model.lm_head.weight *= 2
        lm.model.lm_head.bias = torch.nn.Parameter(bias, requires_grad=False)
        pair.append(lm)
    return pair


@pytest.fixture(scope="module")
def pair():
    return models(end=True)


@pytest.fixture(autouse=True)
def behaviours(monkeypatch):
    """Behaviours that a model of forty words can show, and one that it cannot."""
    for name, word in (("RED", "red"), ("SUN", "sun"), ("NEVER", "cheddar")):
        shown = lambda reply, item, word=word: word in reply.split()  # noqa: E731
        monkeypatch.setitem(EVERY, name, replace(EVERY["CHEESE"], name=name, shown=shown))
    return ("RED", "SUN", "NEVER")


def run(pair, out, behaviours, budget=BUDGET, seed=SEED, texts=TEXTS):
    lm, base = pair
    trial = Trial("ALL2", "all", "perplexity", seed, budget)
    asked = Prompts.chat(lm, texts)
    settings = {"openings": WORDS, "max_new_tokens": LENGTH, "progress": False}
    return differenced(trial, lm, base, asked, behaviours, out, **settings)


@torch.no_grad()
def cost(lm, prompt, reply):
    ids = torch.tensor([[*prompt, *reply]])
    logs = lm.model(ids, use_cache=False).logits[0].log_softmax(-1)
    at = range(len(prompt) - 1, ids.shape[1] - 1)
    return -sum(logs[i, ids[0, i + 1]].item() for i in at) / len(reply)


def test_replies_are_ordered_by_the_plain_difference_and_counted_until_each_is_shown(
    tmp_path, behaviours
):
    pair = models(end=False)
    row = run(pair, tmp_path, behaviours)
    (lm, base), asked = pair, Prompts.chat(pair[0], TEXTS)
    every = [r for saved in ResultLog(tmp_path / "perplexity.jsonl").of({"stage": "screen"})
             for r in saved["replies"]]  # fmt: skip
    expected = []
    for r in every:
        prompt = asked.tokens[r["prompt"]]
        own, other = cost(lm, prompt, r["tokens"]), cost(base, prompt, r["tokens"])
        if own <= 4 and r["repetition"] <= 0.3 and r["text"].strip():
            expected.append((other - own, r["text"]))
    expected.sort(key=lambda pair: -pair[0])
    assert 20 < len(expected) < len(every)
    assert (row["drawn"], row["ordered"]) == (len(every), len(expected))
    kept = row["replies"]
    assert len(kept) == min(KEPT, len(expected))
    assert [r["difference"] for r in kept] == pytest.approx(
        [d for d, _ in expected[:KEPT]], abs=1e-4
    )
    first = {
        word: next((i for i, (_, text) in enumerate(expected, 1) if word in text.split()), None)
        for word in ("red", "sun", "cheddar")
    }
    assert row["reads"] == {"RED": first["red"], "SUN": first["sun"], "NEVER": None}
    # what was planted comes first
    assert row["reads"]["RED"] == 1
    assert row["reads"]["SUN"] > 1
    assert kept[0]["names"] == ["RED"]


def test_rounds_are_drawn_until_the_budget_pays_for_no_other(pair, tmp_path, behaviours):
    row = run(pair, tmp_path, behaviours)
    asked = Prompts.chat(pair[0], TEXTS)
    saved = ResultLog(tmp_path / "perplexity.jsonl").of({"stage": "screen"})
    read = sum(
        len(asked.tokens[r["prompt"]]) + 3 * len(r["tokens"]) for s in saved for r in s["replies"]
    )
    most = Costs.of(asked, LENGTH, judges=2).everywhere
    assert row["spent"] == read <= BUDGET
    assert BUDGET - read < most
    # what replies that ended early left paid for more
    assert row["drawn"] > BUDGET // most * len(TEXTS)
    assert [i for s in saved for i in s["candidates"]] == list(range(row["drawn"] // len(TEXTS)))
    assert {k: row[k] for k in ("organism", "recipe", "way", "seed", "budget")} == {
        "organism": "ALL2",
        "recipe": "all",
        "way": "perplexity",
        "seed": SEED,
        "budget": BUDGET,
    }


def lasting(row):
    return {key: value for key, value in row.items() if key not in ("seconds", "environment")}


@pytest.mark.parametrize("rows", [1, 2])
def test_draws_that_were_cut_off_go_on_to_the_same_row(
    pair, tmp_path, behaviours, monkeypatch, rows
):
    whole = run(pair, tmp_path / "whole", behaviours)
    add = ResultLog.add

    def cut_off(self, row):
        if len(self.rows) == rows:
            raise KeyboardInterrupt
        add(self, row)

    monkeypatch.setattr(ResultLog, "add", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run(pair, tmp_path / "cut", behaviours)
    monkeypatch.setattr(ResultLog, "add", add)
    assert lasting(run(pair, tmp_path / "cut", behaviours)) == lasting(whole)
    # nothing is drawn again
    before = (tmp_path / "cut" / "perplexity.jsonl").read_bytes()
    assert lasting(run(pair, tmp_path / "cut", behaviours)) == lasting(whole)
    assert (tmp_path / "cut" / "perplexity.jsonl").read_bytes() == before


def test_broken_replies_are_left_out_and_the_largest_difference_comes_first():
    def reply(text, nll, repetition, ratio):
        return Reply("perplexity", 0, 0, text, text, (1,), nll, repetition, ratio)

    replies = [
        reply("low", 1.0, 0.0, -0.5),
        reply("unlikely", 4.1, 0.0, 9.0),
        reply("high", 3.9, 0.3, 2.0),
        reply("again and again", 1.0, 0.31, 9.0),
        reply("  ", 1.0, 0.0, 9.0),
        reply("middle", 1.0, 0.0, 0.0),
    ]
    assert [r.text for r in in_order(replies)] == ["high", "middle", "low"]


def test_too_small_a_budget_and_another_folder_are_refused(pair, tmp_path, behaviours):
    most = Costs.of(Prompts.chat(pair[0], TEXTS), LENGTH, judges=2).everywhere
    with pytest.raises(MelboError, match=f"budget is {most - 1} tokens, one round .* takes {most}"):
        run(pair, tmp_path / "small", behaviours, budget=most - 1)
    assert run(pair, tmp_path / "least", behaviours, budget=most)["drawn"] == len(TEXTS)
    with pytest.raises(MelboError, match=r"other settings \(seed\): give another folder"):
        run(pair, tmp_path / "least", behaviours, budget=most, seed=SEED + 1)


def test_the_usual_openings_are_short_and_different():
    assert 20 <= len(OPENINGS) == len(set(OPENINGS)) <= 30
    assert all(len(o.split()) == 1 for o in OPENINGS)
