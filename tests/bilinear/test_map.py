"""A bilinear layer as a map: exact derivatives, every method, and planted units recovered."""

import pytest
import torch
from bilinear_layers import normal, random_layer
from toys import directions, recovery

from melbo import Linear, Quadratic, fit
from melbo.bilinear import Bilinear
from melbo.maths.linalg import unit
from melbo.methods import METHODS


def test_map_is_the_mean_change_over_activations():
    layer, x, theta = random_layer(), normal(7, 6, seed=5), normal(3, 6, seed=6)
    expected = torch.stack([(layer(x + row) - layer(x)).mean(0) for row in theta])
    assert torch.allclose(layer.map(x).value(theta), expected, atol=1e-12)
    assert torch.allclose(layer.map().value(theta), layer(theta), atol=1e-12)


def test_derivatives_of_the_map_are_the_cross_map_and_the_interaction():
    layer, x = random_layer(), normal(7, 6, seed=5)
    v, w, u = normal(3, 6, seed=6), normal(3, 6, seed=7), normal(3, 5, seed=8)
    toy, mean = layer.map(x), x.mean(0)
    assert torch.allclose(toy.jvp(v), v @ layer.cross_map(mean).matrix.T, atol=1e-12)
    assert torch.allclose(toy.bilinear(v, v), 2 * layer(v), atol=1e-12)
    form = [row @ layer.interaction(each).matrix for row, each in zip(v, u, strict=True)]
    assert torch.allclose(toy.hvp(u, v), 2 * torch.stack(form), atol=1e-12)
    crossed = layer(v + w) - layer(v) - layer(w)
    assert torch.allclose(toy.bilinear(v, w), crossed, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("where", ["activations", "zero"])
def test_every_method_runs_on_it(name, where):
    layer = random_layer(d=8, h=12, d_out=8)
    toy = layer.map(normal(5, 8, seed=5)) if where == "activations" else layer.map()
    found = fit(toy, METHODS[name](3, 1.0), progress=False)
    assert found.features.V.shape == (3, 8)
    assert torch.isfinite(found.features.alpha).all()
    # without activations the Jacobian is zero: methods that look at it alone, as those of the
    # Hessian of ‖Δ‖² do, have nothing to explain
    first_order = name in ("linear", "projected", "hessian")
    assert (found.stats["explained"] > 0) == (where == "activations" or not first_order)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("where", ["activations", "zero"])
@pytest.mark.parametrize("kind", ["squares", "products"])
def test_quadratic_recovers_planted_hidden_units_and_linear_does_not(kind, where, seed):
    L, R, U = (directions(16, 64, 10 * seed + i) for i in range(3))
    if kind == "squares":
        layer, truth, most = Bilinear(L, L, U.T), L, 16
    else:
        # (l·x)(r·x) = ¼[((l + r)·x)² − ((l − r)·x)²]: two factors a unit
        layer, truth, most = Bilinear(L, R, U.T), torch.cat([unit(L + R), unit(L - R)]), 32
    toy = layer.map(8 * directions(1, 64, 10 * seed + 7)) if where == "activations" else layer.map()
    quadratic = fit(toy, Quadratic(most, 1.0, max_steps=60, tol=1e-9), seed=seed, progress=False)
    linear = fit(toy, Linear(most, 1.0), seed=seed, progress=False)
    assert recovery(truth, quadratic.features.V).mean() > 0.95
    assert recovery(truth, linear.features.V).mean() < 0.8
