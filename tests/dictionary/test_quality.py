"""Measures of quality, against plain sums and known shrinkage."""

import pytest
import torch
from torch import nn

from melbo import MelboError
from melbo.dictionary import ReLU, TopK, measure


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_measures_are_those_of_the_plain_sums_over_all_batches():
    dictionary = TopK(6, 20, 3).double()
    dictionary.b_dec = nn.Parameter(random(6, seed=1))
    dictionary.b_enc.data[:10] = -50
    x = random(40, 6) + 2
    found = measure(dictionary, [x[:7], x[7:]])
    f, y = dictionary.encode(x), dictionary(x)
    error = (x - y).square().sum()
    assert found.tokens == 40
    assert found.variance_explained == pytest.approx(
        1 - (error / (x - x.mean(0)).square().sum()).item()
    )
    assert found.l0 == pytest.approx((f != 0).double().sum(1).mean().item())
    assert found.dead == pytest.approx(1 - (f != 0).any(0).double().mean().item())
    assert found.dead >= 0.5
    assert found.relative_norm == pytest.approx((y.norm(dim=1) / x.norm(dim=1)).mean().item())


def test_gamma_is_the_factor_that_brings_reconstructions_nearest():
    dictionary = ReLU(6, 20).double()
    dictionary.b_enc.data -= 0.5
    x = random(200, 6)
    found, y = measure(dictionary, [x]), dictionary(x).detach()
    errors = [
        (x - y / gamma).square().sum() for gamma in found.gamma * torch.tensor([1, 0.99, 1.01])
    ]
    assert errors[0] < min(errors[1:])
    # b_dec is 0 here
    assert found.gamma == pytest.approx(found.gamma_centred)


def test_a_dictionary_that_halves_has_a_gamma_of_a_half():
    dictionary = ReLU(3, 6).double()
    eye = torch.eye(3, dtype=torch.float64)
    dictionary.W_dec.data = torch.cat([eye, -eye])
    dictionary.W_enc.data = dictionary.W_dec.data.T / 2
    dictionary.b_dec.data += 4
    x = random(100, 3) + 4
    found = measure(dictionary, [x])
    assert found.gamma_centred == pytest.approx(0.5)
    assert found.gamma > 0.9  # the bias hides it


def test_activations_that_say_nothing_are_refused():
    with pytest.raises(MelboError, match="without variance"):
        measure(TopK(3, 6, 2), [torch.ones(5, 3)])
    with pytest.raises(MelboError, match="without variance"):
        measure(TopK(3, 6, 2), [])
    with pytest.raises(MelboError, match="of width 3"):
        measure(TopK(3, 6, 2), [torch.ones(5, 4)])
