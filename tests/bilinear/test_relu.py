import pytest
import torch
from bilinear_layers import normal

from melbo import MelboError
from melbo.bilinear import ReluMLP

EXACT = {"rtol": 1e-11, "atol": 1e-11}


def random_mlp(biases=True):
    b_in, b_out = (normal(9, seed=2), normal(5, seed=3)) if biases else (None, None)
    return ReluMLP(normal(9, 6), normal(5, 9, seed=1), b_in, b_out)


def before(mlp, x):
    """Hidden units before ReLU."""
    return x @ mlp.W_in.T + (0 if mlp.b_in is None else mlp.b_in)


@pytest.mark.parametrize("biases", [True, False])
def test_output_is_that_of_torch(biases):
    mlp, x = random_mlp(biases), normal(4, 6, seed=5)
    first = torch.nn.functional.linear(x, mlp.W_in, mlp.b_in)
    expected = torch.nn.functional.linear(first.relu(), mlp.W_out, mlp.b_out)
    assert torch.allclose(mlp(x), expected, **EXACT)


@pytest.mark.parametrize("biases", [True, False])
def test_split_is_exact_up_to_the_flip_and_breaks_just_past_it(biases):
    mlp, x, s = random_mlp(biases), normal(8, 6, seed=5), normal(8, 6, seed=6)
    split, flips = mlp.split(x, s), mlp.first_flip(x, s)
    assert torch.isfinite(flips).any()
    assert torch.equal(split.self, torch.zeros_like(split.base))
    for k in torch.isfinite(flips).nonzero()[:, 0].tolist():
        flip = flips[k].item()
        own = type(split)(*(term[k : k + 1] for term in split))
        x_k, s_k = x[k : k + 1], s[k : k + 1]
        for alpha in (0.0, 0.5 * flip, flip):
            assert torch.allclose(own.at(alpha), mlp(x_k + alpha * s_k), **EXACT)
        # by how much it breaks is known: what the unit that flipped writes, or no longer takes away
        past = flip + 1e-4
        unit = (before(mlp, x_k + flip * s_k)[0]).abs().argmin()
        missed = 1e-4 * (mlp.W_in[unit] @ s_k[0]).abs() * mlp.W_out[:, unit]
        off = mlp(x_k + past * s_k)[0] - own.at(past)[0]
        assert torch.allclose(off, missed, rtol=1e-6)
        assert off.norm() > 1e-6


def test_first_flip_is_where_signs_first_change():
    mlp, x, s = random_mlp(), normal(8, 6, seed=5), normal(8, 6, seed=6)
    gates = before(mlp, x) > 0
    flips = mlp.first_flip(x, s)
    steps = torch.arange(1, 4000, dtype=torch.float64)[:, None] * 1e-3
    assert torch.isfinite(flips).sum() == 7
    for k, flip in enumerate(flips.tolist()):
        changed = ((before(mlp, x[k] + steps * s[k]) > 0) != gates[k]).any(-1)
        seen = steps[changed.int().argmax(), 0].item()
        assert seen - 1e-3 <= flip <= seen if changed.any() else flip == float("inf")


def test_a_direction_that_no_gate_minds_never_flips():
    mlp = ReluMLP(torch.eye(3).double(), torch.eye(3).double())
    x = torch.tensor([[1.0, 2.0, -1.0]]).double()
    s = torch.tensor([[1.0, 0.0, -3.0]]).double()
    assert mlp.first_flip(x, s).tolist() == [float("inf")]
    assert torch.allclose(mlp.split(x, s).at(1e6), mlp(x + 1e6 * s), **EXACT)


def test_a_gate_at_zero_goes_the_way_that_s_pushes_it():
    mlp = ReluMLP(torch.eye(2).double(), torch.eye(2).double())
    x, s = torch.zeros(1, 2).double(), torch.tensor([[1.0, -1.0]]).double()
    assert mlp.first_flip(x, s).tolist() == [float("inf")]
    for direction in (s, -s):
        assert torch.equal(mlp.split(x, direction).at(2.0), mlp(x + 2 * direction))


def test_bad_input_is_refused_in_one_line():
    W_in, W_out = normal(9, 6), normal(5, 9)
    with pytest.raises(MelboError, match=r"got W_in \[9, 6\] and W_out \[9, 5\]: expected W_in"):
        ReluMLP(W_in, W_out.T)
    with pytest.raises(MelboError, match=r"b_in has shape \[5\]: expected \[9\]"):
        ReluMLP(W_in, W_out, b_in=normal(5))
    with pytest.raises(MelboError, match="b_out has values that are not finite"):
        ReluMLP(W_in, W_out, b_out=normal(5) * torch.inf)
    with pytest.raises(MelboError, match="W_in is in float16"):
        ReluMLP(W_in.half(), W_out.half())
    mlp = random_mlp()
    with pytest.raises(MelboError, match=r"s has shape \[4, 5\]: expected rows \[k, 6\]"):
        mlp.first_flip(normal(4, 6), normal(4, 5))
    with pytest.raises(MelboError, match="x has values that are not finite"):
        mlp.split(normal(4, 6) * torch.nan, normal(4, 6))
