"""A contrast vector traced through the MLPs of a model."""

import math

import pytest
import torch
from bilinear_layers import normal, random_layer
from cases import tiny_model
from torch import nn

from melbo import MelboError, Prompts
from melbo.bilinear.gate import GatedMLP
from melbo.bilinear.trace import PREDICTIONS, carriers, respond, trace

ALPHAS = (-1.0, 0.5, 2.0)


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def texts(lm):
    return Prompts.text(lm, ["you is red", "he was one blue"]).tokens


def by_hand(lm, texts, layer, alpha):
    """Input and output of every MLP at the last token, the vector added by a hook of its own."""
    ends = []
    for tokens in texts:
        states = lm.model(torch.tensor([tokens]), output_hidden_states=True).hidden_states
        ends.append(states[layer][0, -1])
    seen = []

    def add(block, args):
        hidden = args[0].clone()
        hidden[0, -1] += alpha * (ends[0] - ends[1])
        return (hidden, *args[1:])

    def note(mlp, args, out):
        seen.append((args[0][0, -1], out[0, -1]))

    handles = [block.mlp.register_forward_hook(note) for block in lm.blocks]
    handles.append(lm.blocks[layer].register_forward_pre_hook(add))
    lm.model(torch.tensor([texts[1]]))
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("layer", [0, 1])
def test_responses_are_those_of_the_steered_model(lm, texts, layer):
    found = trace(lm, *texts, layer, ALPHAS)
    assert list(found.responses) == list(range(layer, lm.depth))
    plain = by_hand(lm, texts, layer, 0.0)
    for k, alpha in enumerate(ALPHAS):
        steered = by_hand(lm, texts, layer, alpha)
        for block, responses in found.responses.items():
            (x, y), (moved, out) = plain[block], steered[block]
            own, real = responses[k], (out - y).float()
            assert own.alpha == alpha
            assert own.size == pytest.approx((real.norm() / y.norm()).item(), rel=1e-3)
            weights = lm.blocks[block].mlp
            change = moved - x
            L, R = weights.gate_proj.weight, weights.up_proj.weight
            cross = (L @ x) * (R @ change) + (L @ change) * (R @ x)
            both = cross + (L @ change) * (R @ change)
            predicted = (weights.down_proj.weight @ both).float()
            fit = own.agreement["weights"]
            assert fit.error == pytest.approx(
                ((predicted - real).norm() / real.norm()).item(), rel=1e-3
            )
            assert fit.cosine == pytest.approx(
                torch.cosine_similarity(predicted, real, dim=0).item(), abs=1e-4
            )


def test_shares_of_units_are_what_they_write(lm):
    layer, x, changes = random_layer(), normal(6, seed=5), normal(1, 6, seed=6)
    mlp = GatedMLP(layer, nn.SiLU())
    (found,) = respond(mlp, x, changes, [1.0])
    written = (mlp.hidden((x + changes[0])[None]) - mlp.hidden(x[None]))[0] * layer.D
    real = written.sum(1)
    shares = written.T @ real / (real @ real)
    assert shares.sum().item() == pytest.approx(1)
    unit, share = found.units[0]
    assert unit == int(shares.argmax())
    assert share == pytest.approx(shares.max().item())
    assert found.carriers == carriers(shares)


def test_least_number_of_units_for_half():
    assert carriers(torch.tensor([0.1, 0.6, 0.3])) == 1
    assert carriers(torch.tensor([0.3, 0.1, 0.3, 0.3])) == 2
    assert carriers(torch.tensor([0.4, -0.3, 0.3, 0.3, 0.3])) == 2


def test_a_bilinear_layer_is_predicted_exactly_and_moves_along_a_line():
    layer, x, s = random_layer(), normal(6, seed=5), normal(1, 6, seed=6)
    responses = respond(GatedMLP(layer), x, torch.cat([0.5 * s, 2 * s, -3 * s]), (0.5, 2.0, -3.0))
    split = layer.split(x[None], s)
    for found in responses:
        for name in ("weights", "tangent gate", "second order"):
            assert found.agreement[name].error < 1e-12
        cross, own = found.alpha * split.cross[0], found.alpha**2 * split.self[0]
        total = cross + own
        assert found.cross == pytest.approx((cross @ total / (total @ total)).item())
        assert found.bent == pytest.approx(0, abs=1e-12)
    # first order alone misses α²y(s)
    misses = [found.agreement["first order"].error for found in responses]
    assert min(misses) > 0.01
    (bent,) = respond(GatedMLP(layer), x, torch.cat([s, 3 * s]), (1.0, 2.0))[1:]
    assert bent.bent == pytest.approx(0.5)


def test_small_changes_agree_to_first_order(lm, texts):
    found = trace(lm, *texts, 1, (1e-3,))
    for (response,) in found.responses.values():
        for name in PREDICTIONS[1:]:
            assert response.agreement[name].cosine > 0.999
        assert response.agreement["weights"].cosine < 0.999


def test_what_cannot_be_traced_is_refused(lm, texts):
    same = Prompts.text(lm, ["you is red", "he was red"]).tokens
    with pytest.raises(MelboError, match="no contrast vector: give texts that end differently"):
        trace(lm, *same, 0)
    assert trace(lm, *same, 1).norm > 0
    with pytest.raises(MelboError, match="no block reads layer 4"):
        trace(lm, *texts, lm.depth)
    for alphas in ((), (0.0,), (1.0, 1.0), (math.nan,), (math.inf,)):
        with pytest.raises(MelboError, match="expected finite numbers other than 0, each once"):
            trace(lm, *texts, 1, alphas)
    with pytest.raises(MelboError, match="block 1 of gpt2 has no gated MLP"):
        trace(tiny_model("gpt2"), *texts, 1)
    with pytest.raises(MelboError, match="block 1 of llama: the MLP does not respond"):
        trace(lm, *texts, 1, (1e-30,))


@pytest.mark.parametrize("size", [math.inf, 1e200])
def test_responses_that_overflow_are_refused(size):
    change = torch.full((1, 6), size, dtype=torch.float64)
    with pytest.raises(MelboError, match="not finite at the largest scale: lower it"):
        respond(GatedMLP(random_layer()), normal(6), change, [1.0])
