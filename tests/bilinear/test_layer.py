import pytest
import torch
from bilinear_layers import normal, random_layer

from melbo import MelboError
from melbo.bilinear import Bilinear

EXACT = {"rtol": 1e-11, "atol": 1e-11}


def written_out(layer, x):
    """y(x) of one activation, hidden unit by hidden unit."""
    units = zip(layer.L, layer.R, layer.D.T, strict=True)
    return sum((a @ x) * (b @ x) * column for a, b, column in units)


def test_output_is_the_sum_over_hidden_units():
    layer, x = random_layer(), normal(4, 6, seed=5)
    expected = torch.stack([written_out(layer, row) for row in x])
    assert torch.allclose(layer(x), expected, **EXACT)


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("alpha", [-3.0, 0.0, 0.5, 20.0])
def test_three_terms_sum_to_the_forward_pass(dtype, tol, alpha):
    layer = random_layer(dtype=dtype)
    x, s = normal(4, 6, seed=5, dtype=dtype), normal(4, 6, seed=6, dtype=dtype)
    split = layer.split(x, s)
    steered = layer(x + alpha * s)
    assert (split.at(alpha) - steered).norm() < tol * steered.norm()
    assert torch.equal(split.base, layer(x))
    assert torch.equal(split.self, layer(s))


def test_terms_are_the_derivatives_along_s():
    layer, x, s = random_layer(), normal(1, 6, seed=5), normal(1, 6, seed=6)
    split = layer.split(x, s)

    def slope(at):
        return torch.func.jvp(layer, (at,), (s,))[1]

    assert torch.allclose(split.cross, slope(x), **EXACT)
    assert torch.allclose(2 * split.self, torch.func.jvp(slope, (x,), (s,))[1], **EXACT)


def test_one_row_of_s_goes_with_all_activations():
    layer, x, s = random_layer(), normal(4, 6, seed=5), normal(1, 6, seed=6)
    for one, several in zip(layer.split(x, s), layer.split(x, s.expand(4, -1)), strict=True):
        assert one.shape == (4, 5)
        assert torch.allclose(one, several, **EXACT)


@pytest.mark.parametrize("alpha", [-1.0, 1e-3, 7.0, 1e6])
def test_shares_and_output_over_the_square_do_not_depend_on_alpha(alpha):
    layer, s = random_layer(), normal(3, 6, seed=6)
    assert torch.allclose(layer.shares(alpha * s), layer.shares(s), rtol=1e-9, atol=1e-12)
    assert torch.allclose(layer(alpha * s) / alpha**2, layer(s), rtol=1e-9)


def test_shares_are_of_the_length_of_the_output():
    layer, s = random_layer(), normal(2, 6, seed=6)
    shares = layer.shares(s)
    assert torch.allclose(shares.sum(-1), torch.ones(2, dtype=torch.float64), **EXACT)
    for row, own in zip(s, shares, strict=True):
        y = written_out(layer, row)
        for i in range(9):
            alone = (layer.L[i] @ row) * (layer.R[i] @ row) * layer.D[:, i]
            assert own[i].item() == pytest.approx((alone @ y / (y @ y)).item(), rel=1e-9)


def test_shares_of_a_small_vector_in_single_precision():
    layer, s = random_layer(dtype=torch.float32), normal(1, 6, seed=6, dtype=torch.float32)
    assert torch.allclose(layer.shares(1e-25 * s), layer.shares(s), rtol=1e-4, atol=1e-5)


def test_shares_of_no_response_are_refused():
    layer, s = random_layer(), normal(2, 6, seed=6)
    s[1] = 0
    with pytest.raises(MelboError, match="maps row 1 of s to zero"):
        layer.shares(s)
    twice = normal(3, 6, seed=1).repeat(2, 1)
    opposed = torch.cat([normal(5, 3, seed=2), -normal(5, 3, seed=2)], 1)
    with pytest.raises(MelboError, match="maps row 0 of s to zero"):
        Bilinear(twice, twice, opposed).shares(s[:1])


@pytest.mark.parametrize("d_out", [4, 6, 8])
def test_cross_map_gives_the_term_of_first_order(d_out):
    layer, x, s = random_layer(d_out=d_out), normal(4, 6, seed=5), normal(6, seed=6)
    found = layer.cross_map(s)
    assert torch.allclose(x @ found.matrix.T, layer.split(x, s[None]).cross, **EXACT)
    # at x = s it is twice the output: C_s s = 2 y(s)
    assert torch.allclose(found.matrix @ s, 2 * layer(s[None])[0], **EXACT)
    again = found.U.T @ torch.diag(found.sigma) @ found.V
    assert torch.allclose(again, found.matrix, **EXACT)
    assert (found.sigma.diff() <= 0).all()
    assert found.V.shape == (min(6, d_out), 6)
    assert found.U.shape == (min(6, d_out), d_out)


def test_interaction_is_the_quadratic_form_of_an_output():
    layer, x, u = random_layer(), normal(4, 6, seed=5), normal(5, seed=6)
    found = layer.interaction(u)
    form = torch.einsum("ki,ij,kj->k", x, found.matrix, x)
    assert torch.allclose(form, layer(x) @ u, **EXACT)
    assert torch.equal(found.matrix, found.matrix.T)
    again = found.vectors.T @ torch.diag(found.values) @ found.vectors
    assert torch.allclose(again, found.matrix, **EXACT)
    assert (found.values.abs().diff() <= 0).all()
    largest = found.vectors.abs().argmax(-1, keepdim=True)
    assert (found.vectors.gather(-1, largest) > 0).all()


WRONG_WEIGHTS = {
    "hidden units of R": ((9, 6), (8, 6), (5, 9), "expected L and R"),
    "width of R": ((9, 6), (9, 7), (5, 9), "expected L and R"),
    "D the other way round": ((9, 6), (9, 6), (9, 5), "expected L and R"),
    "a vector": ((9, 6), (9, 6), (9,), "expected L and R"),
    "nothing": ((0, 6), (0, 6), (5, 0), "expected L and R"),
}


@pytest.mark.parametrize("case", WRONG_WEIGHTS)
def test_weights_that_do_not_fit_are_refused(case):
    *shapes, message = WRONG_WEIGHTS[case]
    with pytest.raises(MelboError, match=message) as caught:
        Bilinear(*(normal(*shape) for shape in shapes))
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_finite_or_too_coarse_are_refused():
    layer = random_layer()
    broken = layer.D.clone()
    broken[0, 0] = torch.nan
    with pytest.raises(MelboError, match="D has values that are not finite"):
        Bilinear(layer.L, layer.R, broken)
    with pytest.raises(MelboError, match="L is in bfloat16: expected float32 or float64"):
        Bilinear(layer.L.bfloat16(), layer.R, layer.D)
    with pytest.raises(MelboError, match="R is in float32 .* other weights in float64"):
        Bilinear(layer.L, layer.R.float(), layer.D)


def test_rows_that_do_not_fit_are_refused():
    layer, x = random_layer(), normal(4, 6)
    with pytest.raises(MelboError, match=r"x has shape \[4, 5\]: expected rows \[k, 6\]"):
        layer(x[:, :5])
    with pytest.raises(MelboError, match=r"x has shape \[6\]: expected rows"):
        layer(x[0])
    with pytest.raises(MelboError, match="got 4 rows of x and 3 rows of s"):
        layer.split(x, x[:3])
    with pytest.raises(MelboError, match="s has values that are not finite"):
        layer.split(x, x / 0)
    with pytest.raises(MelboError, match="x has values that are not finite"):
        random_layer(dtype=torch.float32)(1e60 * x)
    with pytest.raises(MelboError, match=r"s has shape \[1, 6\]: expected one vector \[6\]"):
        layer.cross_map(x[:1])
    with pytest.raises(MelboError, match=r"u has shape \[6\]: expected one vector \[5\]"):
        layer.interaction(x[0])
    with pytest.raises(MelboError, match="u has values that are not finite"):
        layer.interaction(x[0, :5] * torch.nan)
    with pytest.raises(MelboError, match="x has shape"):
        layer.map(x[:0])
