"""Products with k latents of each row, against the same with dense latents."""

import pytest
import torch
from torch.nn.functional import relu

from melbo.dictionary import TopK
from melbo.dictionary.sparse import largest, sparse_reconstruction


def random(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64)


@pytest.mark.parametrize(("m", "k"), [(4096, 32), (2048, 7), (512, 4), (64, 64), (100, 3)])
def test_the_largest_are_those_of_topk(m, k):
    values = random(2, 9, m)
    found, index = largest(values, k)
    torch.testing.assert_close(values.gather(-1, index), found)
    wanted = values.topk(k, dim=-1).values
    torch.testing.assert_close(found.sort(-1, descending=True).values, wanted)
    assert all(len(set(row.tolist())) == k for row in index.flatten(0, 1))


def test_the_largest_of_equal_values_are_different_places():
    values = torch.zeros(3, 4096)
    _, index = largest(values, 8)
    assert all(len(set(row.tolist())) == 8 for row in index)


def test_reconstruction_and_gradients_are_those_of_dense_latents():
    d, m, k = 8, 64, 3
    given = {
        "x": random(10, d, seed=1),
        "b_dec": random(d, seed=2),
        "W_enc": random(d, m, seed=3),
        # so that some of the k largest are negative
        "b_enc": random(m, seed=4) - 6,
        "W_dec": random(m, d, seed=5),
    }
    for value in given.values():
        value.requires_grad_()

    def dense(x, b_dec, W_enc, b_enc, W_dec):
        pi = (x - b_dec) @ W_enc + b_enc
        kept = pi.topk(k, dim=-1)
        f = torch.zeros_like(pi).scatter(1, kept.indices, relu(kept.values))
        return f @ W_dec + b_dec

    wanted = dense(*given.values())
    found, values, index = sparse_reconstruction(*given.values(), k)
    assert (values == 0).any()
    assert (values > 0).any()
    assert index.shape == (10, k)
    torch.testing.assert_close(found, wanted)
    weights = random(10, d, seed=6)
    grads = [
        torch.autograd.grad((y * weights).sum(), list(given.values())) for y in (found, wanted)
    ]
    for name, ours, theirs in zip(given, *grads, strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_a_step_says_which_latents_fired_and_what_they_give():
    dictionary = TopK(6, 40, 2).double()
    x = random(3, 4, 6)
    step = dictionary.step(x)
    torch.testing.assert_close(step.reconstruction, dictionary(x))
    f = dictionary.encode(x)
    assert step.fired.tolist() == (f != 0).flatten(0, 1).any(0).tolist()
    assert 0 < int(step.fired.sum()) < 40
