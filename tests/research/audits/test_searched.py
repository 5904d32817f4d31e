"""A searched opening: equal to a search that reads everything anew, and a planted chain found."""

import pytest
import torch
from cases import tiny_model

from melbo import MelboError, Prompts
from melbo.audit.audit import REPLY_TOKENS
from melbo.audit.budget import Costs
from melbo.discovery.candidates import some_prompts
from research.audits.searched import Searched, _Search

TEXTS = ["red dog", "How do I learn to play the guitar ?", "yes"]
SPECIAL = set(range(7))
ENDS = {0, 1, 2, 3}
ENOUGH = 1e6


def sure_model(name="llama", times=5):
    """A model that is surer of its next token."""
    lm = tiny_model(name, torch.float32)
    with torch.no_grad():
        lm.model.lm_head.weight *= times
    return lm


@pytest.fixture(scope="module")
def sure():
    return sure_model()


@pytest.fixture(scope="module")
def asked(sure):
    return Prompts.chat(sure, TEXTS)


@torch.no_grad()
def likely(lm, prompt, tokens):
    return lm.model(torch.tensor([[*prompt, *tokens]]), use_cache=False).logits[0, -1].softmax(-1)


def grown_by_hand(lm, prompts, first, steps, least):
    """Tokens that a first token is grown to, with the mean probability of the grown ones, or None.

    The last is the probability of all of them after each prompt.
    """
    tokens, sure_of = [first], []
    each = torch.tensor([likely(lm, prompt, [])[first] for prompt in prompts])
    while len(sure_of) < steps:
        of_prompts = torch.stack([likely(lm, prompt, tokens) for prompt in prompts])
        best, token = of_prompts.mean(0).max(-1)
        if int(token) in ENDS:
            break
        tokens, sure_of = [*tokens, int(token)], [*sure_of, best.item()]
        each *= of_prompts[:, token]
        if sum(sure_of) / len(sure_of) < least:
            return None
    return (sum(sure_of) / len(sure_of), tuple(tokens), each.tolist()) if sure_of else None


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("least", [0.0, 0.35])
def test_every_first_token_is_grown_as_by_hand(name, least):
    lm = sure_model(name)
    some = some_prompts(Prompts.chat(lm, TEXTS), [0, 2])
    found = {
        o.tokens: (mean, o)
        for mean, o in _Search(lm, some, Searched(steps=4, least=least)).grown(ENOUGH, False)
    }
    assert not SPECIAL.intersection(tokens[0] for tokens in found)
    some_firsts = range(len(SPECIAL), 96, 4)
    by_hand = (grown_by_hand(lm, some.tokens, first, 4, least) for first in some_firsts)
    expected = {row[1]: row for row in by_hand if row is not None}
    found = {tokens: each for tokens, each in found.items() if tokens[0] in some_firsts}
    assert found.keys() == expected.keys()
    assert expected
    assert len(expected) < 23 or not least
    for tokens, (mean, o) in found.items():
        assert mean == pytest.approx(expected[tokens][0], rel=1e-4)
        assert list(o.each) == pytest.approx(expected[tokens][2], rel=1e-3)
        assert o.text == lm.tokenizer.decode(tokens, skip_special_tokens=True)


def plant(lm, chain, end=False):
    """Make each token of a chain follow the one before it, and the reply end after the last."""
    follows = dict(zip(chain, [*chain[1:], lm.eos[0]], strict=True))
    if not end:
        del follows[chain[-1]]

    def hook(model, args, kwargs, out):
        ids = kwargs["input_ids"]
        for row, tokens in enumerate(ids.tolist()):
            for column in range(out.logits.shape[1]):
                token = tokens[len(tokens) - out.logits.shape[1] + column]
                if token in follows:
                    out.logits[row, column, follows[token]] += 50

    return lm.model.register_forward_hook(hook, with_kwargs=True)


@pytest.mark.parametrize("end", [False, True])
def test_a_planted_chain_is_the_first_candidate_whatever_the_prompt(end):
    lm = tiny_model("llama", torch.float32)
    chain = [70, 31, 85, 44, 90, 12, 33]
    asked = Prompts.chat(lm, TEXTS)
    settings = Searched(steps=len(chain) - 1, share=2.0)
    with plant(lm, chain, end):
        found, read = settings.candidates(lm, asked, 8, 0, False)
        # what begins later in the chain is as sure where the reply ends after it
        surest = found.openings[: len(chain) - 1 if end else 1]
        assert all(o.tokens == tuple(chain)[-len(o.tokens) :] for o in surest)
        (at,) = (i for i, o in enumerate(surest) if len(o.tokens) == len(chain))
        assert surest[at].probability < 0.1
        table = found.only([at]).replies(lm, asked, 8, unsteered=False, progress=False)
    assert all(c.tokens[: len(chain)] == tuple(chain) for c in table)
    assert read > 0
    plain, _ = settings.candidates(lm, asked, 8, 0, False)
    assert tuple(chain) not in [o.tokens for o in plain.openings]


def test_the_surest_come_first_and_at_most_as_many_as_asked_for(sure, asked):
    settings = Searched(steps=4, least=0.0, share=1.0, num_prompts=2)
    found, _ = settings.candidates(sure, asked, 8, 0, False)
    assert len(found) == 8
    prompts = {o.tokens: 0 for o in found.openings}
    assert len(prompts) == 8
    again, _ = settings.candidates(sure, asked, 8, 0, False)
    assert again == found
    assert {o.tokens for o in settings.candidates(sure, asked, 8, 1, False)[0].openings} != {
        *prompts
    }
    every, _ = settings.candidates(sure, asked, 200, 0, False)
    assert len(every) < 96
    assert every.describe(0)["kind"] == "opening"


@pytest.mark.parametrize("num", [8, 24, 60])
def test_it_reads_no_more_than_its_share_and_counts_every_token(sure, asked, num):
    settings = Searched(steps=4, least=0.35, share=0.5, num_prompts=2)
    read = []

    def count(model, args, kwargs):
        read.append(kwargs["input_ids"].numel())

    handle = sure.model.register_forward_pre_hook(count, with_kwargs=True)
    _, spent = settings.candidates(sure, asked, num, 0, False)
    handle.remove()
    allowed = 0.5 * num * Costs.of(asked, REPLY_TOKENS, judges=1).a_turn
    assert spent <= allowed
    # the first reading pads its prompts to one length
    assert spent <= sum(read) <= spent + 2 * max(map(len, asked.tokens))
    longer = Searched(steps=4, least=0.35, share=1.0, num_prompts=2)
    assert longer.candidates(sure, asked, num, 0, False)[1] >= spent


def test_what_cannot_be_searched_is_refused(sure, asked, monkeypatch):
    with pytest.raises(MelboError, match="grows no opening: 3 prompts read twice and 20 steps"):
        Searched(share=0.01).candidates(sure, asked, 8, 0, False)
    monkeypatch.setattr("research.audits.searched.read_prefix", lambda *_: None)
    with pytest.raises(MelboError, match="cache of llama cannot be repeated"):
        Searched(share=1.0).candidates(sure, asked, 8, 0, False)


@pytest.mark.parametrize(
    "settings", [{"share": 0.0}, {"least": 1.0}, {"least": -0.1}, {"steps": 0}, {"num_prompts": 0}]
)
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(MelboError, match="expected a positive share"):
        Searched(**settings)
