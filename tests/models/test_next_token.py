"""The choice of the next token: equal to plain twins that read everything anew."""

import pytest
import torch
from cases import TINY, tiny_model

from melbo import MelboError, Prompts, edit
from melbo.maths.keyed_random import key_of, uniform
from melbo.models.decoding.decode import Batching, decode
from melbo.models.edits import EditSequence
from melbo.models.next_token import Draw, Force

TEXTS = ["red dog", "How do I learn to play the guitar ?", "yes", "red dog"]
OPENINGS = ((40, 41), (), (50,), (60, 61, 62, 63, 64))
TEMPERATURES, KEYS = (0.7, 3.0, 1.0, 30.0), tuple(key_of(i) for i in range(4))


@torch.no_grad()
def plain(lm, prompt, length, choose):
    """A reply of one row, read whole for every token, without a cache."""
    ids = list(prompt)
    while len(ids) - len(prompt) < length:
        logits = lm.model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        ids.append(choose(len(ids) - len(prompt), len(ids) - 1, logits))
        if ids[-1] in lm.eos:
            break
    return ids[len(prompt) :]


def forced(row):
    def choose(said, place, logits):
        opening = OPENINGS[row]
        return opening[said] if said < len(opening) else int(logits.argmax())

    return choose


def drawn(row):
    def choose(said, place, logits):
        shares = (logits.double() / TEMPERATURES[row]).softmax(-1)
        left = uniform(KEYS[row], place)
        for token, share in enumerate(shares.tolist()):
            left -= share
            if left < 0:
                return token
        raise AssertionError

    return choose


def edits(tokens):
    return {
        "force": (Force(OPENINGS, tuple(map(len, tokens))), forced),
        "draw": (Draw(TEMPERATURES, KEYS), drawn),
    }


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("kind", ["force", "draw"])
@pytest.mark.parametrize("name", [*TINY])
def test_rows_are_those_of_a_plain_twin(name, kind, size):
    lm = tiny_model(name, torch.float32)
    tokens = Prompts.chat(lm, TEXTS).tokens
    chosen, twin = edits(tokens)[kind]
    batching = Batching(size=size, leg=3, least_prefix=2)
    found = decode(lm, tokens, chosen, 8, batching, progress=False, alike=[0] * 4)
    assert found == [plain(lm, prompt, 8, twin(row)) for row, prompt in enumerate(tokens)]


@pytest.mark.parametrize("kind", ["force", "draw"])
def test_rows_of_one_prompt_read_it_once_and_differ(kind):
    lm = tiny_model("llama", torch.float32)
    tokens = Prompts.chat(lm, TEXTS[:1]).tokens * 4
    chosen, twin = edits(tokens)[kind]
    found = decode(lm, tokens, chosen, 6, progress=False, alike=[0] * 4)
    assert found == [plain(lm, prompt, 6, twin(row)) for row, prompt in enumerate(tokens)]
    assert len(set(map(tuple, found))) > 1


def test_draws_have_the_probabilities_of_the_model():
    lm = tiny_model("llama", torch.float32)
    tokens = Prompts.chat(lm, TEXTS[:1]).tokens
    n, temperature = 3000, 0.8
    edit = Draw((temperature,) * n, tuple(key_of(3, i) for i in range(n)))
    found = decode(lm, tokens * n, edit, 1, Batching(1000), progress=False, alike=[0] * n)
    with torch.no_grad():
        logits = lm.model(torch.tensor(tokens)).logits[0, -1]
    expected = (logits / temperature).softmax(-1)
    shares = torch.bincount(torch.tensor(found)[:, 0], minlength=len(expected)) / n
    assert (shares - expected).abs().max() < 0.03
    assert shares.max() < 0.9


def test_half_precision_keeps_the_choice():
    lm = tiny_model("llama", torch.bfloat16)
    lm.model.lm_head.weight.data.mul_(3000)
    tokens = Prompts.chat(lm, TEXTS).tokens
    lengths = tuple(map(len, tokens))
    found = decode(lm, tokens, Force(OPENINGS, lengths), 8, progress=False, alike=[0] * 4)
    for opening, reply in zip(OPENINGS, found, strict=True):
        assert tuple(reply[: len(opening)]) == opening


def test_logits_that_are_not_finite_leave_the_models_own_choice():
    draw = Draw((1.0,), (key_of(0),))
    assert draw.choose(0, 3, torch.tensor([0.0, float("nan")])) is None
    assert draw.choose(0, 3, torch.tensor([0.0, float("-inf")])) == 0


def test_another_number_of_rows_is_refused():
    lm = tiny_model("llama", torch.float32)
    with (
        pytest.raises(MelboError, match="got 4 choices for a batch of 2 rows"),
        torch.no_grad(),
        edit(lm, Draw(TEMPERATURES, KEYS)),
    ):
        lm.model(torch.tensor([[5, 6], [7, 8]]))
    plain_reply = decode(lm, [[5, 6]], EditSequence(()), 3, progress=False)
    assert plain_reply == [plain(lm, [5, 6], 3, lambda said, place, logits: int(logits.argmax()))]
