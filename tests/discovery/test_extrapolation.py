"""Weights further from a base, against weights that are changed by hand."""

import pytest
import torch
from cases import tiny_model

from melbo import MelboError
from melbo.discovery.extrapolation import Extrapolation
from melbo.models.decoding.decode import decode
from melbo.models.edits import EditSequence


@pytest.fixture(scope="module")
def base():
    return tiny_model("llama", torch.float32)


@pytest.fixture
def tuned():
    lm = tiny_model("llama", torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in ("mlp.up_proj", "self_attn.q_proj", "input_layernorm"):
            weight = lm.model.model.layers[1].get_submodule(name).weight
            weight += 0.3 * torch.randn(weight.shape, generator=generator)
    return lm


def test_greedy_replies_are_those_of_weights_moved_by_hand(base, tuned, asked):
    found, cost = Extrapolation(base).candidates(tuned, asked, 3, 0, False)
    assert cost == 0
    assert len(found.names) == 3
    assert [found.describe(i)["factor"] for i in range(3)] == [0.5, 0.25, 1.0]
    before = {name: p.clone() for name, p in tuned.model.named_parameters()}
    said = found.replies(tuned, asked, 6, unsteered=False, progress=False)
    assert all(torch.equal(p, before[name]) for name, p in tuned.model.named_parameters())
    for i, factor in enumerate((0.5, 0.25, 1.0)):
        by_hand, theirs = tiny_model("llama", torch.float32), dict(base.model.named_parameters())
        with torch.no_grad():
            for name, p in by_hand.model.named_parameters():
                p.copy_(before[name] + factor * (before[name] - theirs[name]))
        slow = decode(by_hand, asked.tokens, EditSequence(()), 6, progress=False)
        assert [list(c.tokens) for c in said if c.feature == i] == [list(r) for r in slow]


def test_draws_come_after_the_greedy_ones_and_depend_on_nothing_beside_them(base, tuned, asked):
    found, _ = Extrapolation(base).candidates(tuned, asked, 7, 0, False)
    assert [found.describe(i)["seed"] is None for i in range(7)] == [True] * 3 + [False] * 4
    said = found.replies(tuned, asked, 6, unsteered=False, progress=False)
    alone = found.only([5]).replies(tuned, asked, 6, unsteered=False, progress=False)
    assert [c.tokens for c in said if c.feature == 5] == [c.tokens for c in alone]
    assert [c.tokens for c in said if c.feature == 5] != [c.tokens for c in said if c.feature == 2]


def test_a_base_that_cannot_be_compared_is_refused(base, tuned, asked):
    def refused(lm, other, said):
        with pytest.raises(MelboError, match=said):
            Extrapolation(other).candidates(lm, asked, 3, 0, False)

    refused(tiny_model("llama", torch.float32), base, "the same weights")
    refused(tuned, tiny_model("gpt2", torch.float32), "cannot be the base")
    more = tiny_model("llama", torch.float32)
    more.model.lm_head.bias = torch.nn.Parameter(torch.zeros(len(more.tokenizer)))
    refused(more, base, "has weights lm_head.bias that .* has not")
