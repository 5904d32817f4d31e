"""Likelihood of replies, against each prompt and reply read alone and whole."""

import pytest
import torch
from cases import FLOAT32_INSIDE, TINY, tiny_model
from toys import directions

from melbo.models.decoding.likelihood import BlocksBefore, reply_logits, reply_nll
from melbo.models.edits import Add, edit

BEGIN = tuple(range(3, 13))
PAIRS = [
    ((*BEGIN, 20), (30, 31, 32)),
    ((*BEGIN, 21, 22, 23), (33,)),
    ((*BEGIN, 24, 25), (34, 35, 36, 37, 38)),
    ((*BEGIN, 20), (39, 40)),
]


def plainly(lm, pairs):
    """−log p of every token, from log-probabilities of rows that are read alone."""
    costs = []
    for prompt, reply in pairs:
        ids = torch.tensor([[*prompt, *reply]])
        logits = lm.model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        costs += [-logits[len(prompt) - 1 + i, token] for i, token in enumerate(reply)]
    return torch.stack(costs)


@pytest.mark.parametrize("name", TINY)
def test_every_token_costs_what_it_costs_in_its_row_alone(name):
    lm = tiny_model(name)
    exact = {"atol": 1e-4 if name in FLOAT32_INSIDE else 1e-9}
    with torch.no_grad():
        truth = plainly(lm, PAIRS)
        for once in (True, False):
            found = reply_nll(lm, lm.model, PAIRS, once).to(truth)
            assert torch.allclose(found, truth, **exact), once
    logits, targets = reply_logits(lm, lm.model, PAIRS)
    assert targets.tolist() == [token for _, reply in PAIRS for token in reply]
    assert logits.shape == (len(targets), logits.shape[-1])


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mixtral"])
@pytest.mark.parametrize("once", [True, False])
def test_blocks_before_a_layer_run_once_and_change_nothing(name, once):
    lm = tiny_model(name)
    reply_nll(lm, lm.model, PAIRS, once)  # with the trials that a model has once
    runs = []
    forward = lm.blocks[1].forward
    before = BlocksBefore(lm, 2)

    def counted(*args, **kwargs):
        runs.append(1)
        return forward(*args, **kwargs)

    lm.blocks[1].forward = counted
    for seed in range(3):
        v = directions(1, lm.width, seed)[0].mul_(4).requires_grad_()
        costs, gradients = [], []
        for read in (
            lambda: reply_nll(lm, lm.model, PAIRS, once, before),
            lambda: plainly(lm, PAIRS),
        ):
            runs.clear()
            with edit(lm, Add(2, v)):
                costs.append(read())
            # the first time it runs, once for the prefix and once for the rest
            gradients.append(torch.autograd.grad(costs[-1].mean(), v)[0])
            if len(costs) == 1:
                assert len(runs) == (0 if seed else 1 + once)
        assert torch.allclose(costs[0].to(costs[1]), costs[1], atol=1e-6)
        assert torch.allclose(*gradients, atol=1e-6)
        assert lm.blocks[1].forward is counted


def test_hooks_of_people_see_every_pass():
    lm = tiny_model("llama")
    seen = []
    handle = lm.blocks[0].register_forward_pre_hook(lambda *_: seen.append(1))
    before = BlocksBefore(lm, 2)
    first, second = (reply_nll(lm, lm.model, PAIRS, False, before) for _ in range(2))
    handle.remove()
    assert len(seen) == 2
    assert torch.equal(first, second)
