from dataclasses import dataclass, fields

import pytest
import torch
from toys import directions, planted, recovery, smooth

from melbo import (
    Alike,
    Exponential,
    FunctionMap,
    Linear,
    Melbo,
    MelboError,
    ObjectiveHessian,
    ProjectedLinear,
    Quadratic,
    Random,
    fit,
)
from melbo.maths.linalg import orthogonalise

ALL = {
    "linear": Linear(4, 1.0),
    "projected": ProjectedLinear(4, 1.0, num_projections=6),
    "quadratic": Quadratic(4, 1.0),
    "quadratic polar": Quadratic(4, 1.0, orthogonalise="polar"),
    "exponential": Exponential(4, 1.0),
    "exponential polar": Exponential(4, 1.0, orthogonalise="polar"),
    "exponential soft": Exponential(15, 1.0, orthogonalise="soft"),
    "exponential backward": Exponential(4, 1.0, start="backward"),
    "exponential damped": Exponential(4, 1.0, beta=0.5),
    "melbo": Melbo(4, 1.0, steps=10),
    "melbo one by one": Melbo(4, 1.0, steps=5, batch_size=1),
    "hessian": ObjectiveHessian(4, 1.0),
    "random": Random(4, 1.0),
}
MAPS = {
    "square": lambda: smooth(12, 12),
    "narrow": lambda: smooth(12, 9),
    "wide": lambda: smooth(8, 13),
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("where", MAPS)
def test_every_method_on_every_map(name, where):
    method, toy = ALL[name], MAPS[where]()
    found = fit(toy, method, seed=3, progress=False)
    features = found.features
    assert features.V.shape == (method.num_factors, toy.d_source)
    assert features.U.shape == (method.num_factors, toy.d_target)
    assert features.alpha.shape == (method.num_factors,)
    assert features.V.dtype == features.U.dtype == features.alpha.dtype == torch.float64
    assert torch.allclose(features.V.norm(dim=-1), torch.ones(1, dtype=torch.float64))
    assert torch.allclose(features.U.norm(dim=-1), torch.ones(1, dtype=torch.float64))
    assert found.stats["explained"] > 0
    assert found.status.remedy
    again = fit(toy, method, seed=3, progress=False).features
    assert torch.equal(features.V, again.V)
    assert torch.equal(features.alpha, again.alpha)
    if name not in ("linear", "hessian"):
        assert not torch.equal(features.V, fit(toy, method, seed=4, progress=False).features.V)


@pytest.mark.parametrize("m", [1, 3, 12])
def test_linear_gives_right_and_left_singular_vectors(m):
    toy = smooth(12, 15)
    found = fit(toy, Linear(m, 2.0), progress=False)
    features = found.features
    u, s, v = torch.linalg.svd(toy.jvp(torch.eye(12, dtype=torch.float64)).T)
    assert ((features.V * v[:m]).sum(-1).abs() > 1 - 1e-6).all()
    assert ((features.U * u.T[:m]).sum(-1).abs() > 1 - 1e-6).all()
    assert torch.allclose(features.alpha, 2.0 * s[:m], rtol=1e-4)
    assert found.stats["explained"] == pytest.approx(4 * s[:m].square().sum().item(), rel=1e-4)


def test_linear_recovers_orthogonal_planted_factors_exactly():
    V, U = orthogonalise(directions(8, 64), "qr"), orthogonalise(directions(8, 48, 1), "qr")
    strengths = torch.linspace(3, 1, 8, dtype=torch.float64)
    toy = FunctionMap(lambda theta: (theta @ V.T * strengths) @ U, 64, 48, torch.float64)
    features = fit(toy, Linear(8, 1.0), progress=False).features
    assert recovery(V, features.V).min() > 1 - 1e-10
    assert recovery(U, features.U).min() > 1 - 1e-10
    assert torch.allclose(features.alpha, strengths, rtol=1e-5)


class Counting(FunctionMap):
    """Counts the products with J and with its transpose."""

    products = 0

    def jvp(self, v):
        self.products += len(v)
        return super().jvp(v)

    def vjp(self, u):
        self.products += len(u)
        return super().vjp(u)


def test_linear_does_not_write_out_a_large_jacobian():
    V, U = directions(40, 900), directions(40, 900, 1)
    strengths = 0.7 ** torch.arange(40, dtype=torch.float64)
    toy = Counting(lambda theta: (theta @ V.T * strengths) @ U, 900, 900, torch.float64)
    features = fit(toy, Linear(4, 1.0), progress=False).features
    assert toy.products < 300
    truth = torch.linalg.svd(toy.jvp(torch.eye(900, dtype=torch.float64)).T)[2]
    assert ((features.V * truth[:4]).sum(-1).abs() > 1 - 1e-5).all()


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_the_leading_pairs_of_a_wide_map_take_a_tenth_of_the_products_of_its_jacobian(power):
    d, m = 4096, 16

    def reflect(x, mirrors):
        for w in mirrors:
            x = x - 2 * (x @ w)[:, None] * w
        return x

    left, right = directions(3, d).float(), directions(3, d, 1).float()
    strengths = torch.arange(1, d + 1) ** -power
    toy = Counting(lambda theta: reflect(reflect(theta, right) * strengths, left), d, d)
    features = fit(toy, Linear(m, 1.0, tol=1e-3), progress=False).features
    assert toy.products <= d / 10
    eye = torch.eye(d)[:m]
    V, U = reflect(eye, right.flip(0)), reflect(eye, left)
    assert torch.allclose(features.alpha, strengths[:m], rtol=1e-3)
    sign = (features.V * V).sum(-1, keepdim=True).sign()
    assert ((features.V - sign * V).norm(dim=-1) < 0.1).all()
    residual = toy.vjp(features.U) - features.alpha[:, None] * features.V
    assert residual.norm(dim=-1).max() < 1e-3 * strengths[0]
    assert (features.U * U).sum(-1).abs().min() > 0.99


@pytest.mark.parametrize("how", ["qr", "polar"])
def test_quadratic_recovers_incoherent_factors_where_linear_does_not(how):
    V, U = directions(24, 128), directions(24, 128, 1)
    toy = planted(V, U, lambda c: c + c**2)
    method = Quadratic(48, 1.0, max_steps=30, orthogonalise=how)
    quadratic = fit(toy, method, progress=False).features
    linear = fit(toy, Linear(48, 1.0), progress=False).features
    assert recovery(V, quadratic.V).mean() > 0.99
    assert recovery(V, linear.V).mean() < 0.8


@pytest.mark.slow
@pytest.mark.parametrize(("how", "mean", "share"), [("qr", 0.97, 0.8), ("soft", 0.99, 0.95)])
def test_exponential_recovers_planted_factors_in_ten_sweeps(how, mean, share):
    # the published setting: d = 4096, 32 true factors, m = 512, R = 1.
    # The published code reaches a mean of .85 and finds 25 % of the factors.
    V, U = directions(32, 4096, 2, torch.float32), directions(32, 4096, 3, torch.float32)
    toy = planted(V, U, torch.expm1, torch.float32)
    found = fit(toy, Exponential(512, 1.0, orthogonalise=how), progress=False).features
    cosines = recovery(V, found.V, signed=True)
    above = (cosines > 0.99).float().mean()
    print(f"{how}: mean best cosine {cosines.mean():.4f}, above .99 {above:.0%}")
    assert cosines.mean() >= mean
    assert above >= share


def test_exponential_explains_more_each_sweep_and_more_than_random():
    toy = smooth(20, 20)
    found = fit(toy, Exponential(6, 1.5, tol=0.0, max_steps=8), progress=False)
    explained = [h["explained"] for h in found.history]
    assert explained[-1] > explained[0]
    assert found.stats["explained"] > fit(toy, Random(6, 1.5), progress=False).stats["explained"]


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (Linear(0, 1.0), "num_factors is 0"),
        (Linear(13, 1.0), "at most 12"),
        (Exponential(13, 1.0), "at most 12.*soft"),
        (Exponential(13, 1.0, orthogonalise="polar"), "at most 12"),
        (Quadratic(13, 1.0), "at most 12"),
        (Exponential(4, 0.0), "scale is 0"),
        (Exponential(4, -1.0), "scale is -1"),
        (Exponential(4, float("nan")), "scale is nan"),
        (Exponential(4, 1.0, beta=0.0), "beta is 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(method, says):
    with pytest.raises(MelboError, match=says):
        fit(smooth(12, 14), method, progress=False)


def test_a_feature_that_dwarfs_the_others_is_pointed_out():
    V, U = orthogonalise(directions(5, 32), "qr"), directions(5, 32, 1)
    even = fit(planted(V, U, torch.expm1), Linear(5, 1.0), progress=False)
    U[2] *= 100
    tall = fit(planted(V, U, torch.expm1), Linear(5, 1.0), progress=False)
    assert even.warning is None
    assert "blowing up norms" in tall.warning
    assert tall.features.meta["fit"]["warning"] == tall.warning


@pytest.mark.parametrize("method", [Exponential(3, 1.0, tol=0.0), Quadratic(3, 1.0, tol=0.0)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_response_that_stops_being_finite_keeps_the_last_good_sweep(method, bad):
    toy, calls = smooth(12, 9), 0
    fine = toy.fn

    def fn(theta):
        nonlocal calls
        calls += 1
        return fine(theta) + (bad * theta.square().sum(-1, keepdim=True) if calls > 8 else 0.0)

    found = fit(FunctionMap(fn, 12, 9, torch.float64), method, progress=False)
    assert found.status.name == "NON_FINITE"
    assert len(found.history) >= 1
    assert found.stats["explained"] == found.history[-1]["explained"]


def test_an_interrupt_while_finishing_keeps_the_last_sweep(monkeypatch):
    def interrupted(self, map, state):
        raise KeyboardInterrupt

    monkeypatch.setattr(Exponential, "finish", interrupted)
    found = fit(smooth(12, 9), Exponential(3, 1.0, max_steps=2), progress=False)
    assert found.status.name == "INTERRUPTED"
    assert found.stats["explained"] == found.history[-1]["explained"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"orthogonalise": "QR"}, "orthogonalise is 'QR'"),
        ({"start": "projection"}, "start is 'projection'"),
    ],
)
def test_misspelt_settings_are_refused(settings, says):
    with pytest.raises(MelboError, match=says):
        fit(smooth(), Exponential(3, 1.0, **settings), progress=False)


def test_what_is_not_a_method_is_refused():
    with pytest.raises(MelboError, match="got str, expected one of melbo's methods"):
        fit(smooth(), "exponential", progress=False)


def test_the_identity_names_only_what_differs_from_the_defaults():
    assert Linear(3, 2.0).identity() == {"name": "Linear", "num_factors": 3}
    assert Linear(3, 2.0, tol=1e-4).identity() == {"name": "Linear", "num_factors": 3}
    changed = Exponential(3, 2.0, orthogonalise="soft", beta=0.5).identity()
    named = {"name": "Exponential", "num_factors": 3}
    assert changed == named | {"orthogonalise": "soft", "beta": 0.5}
    assert Melbo(3, 2.0, batch_size=1).identity()["batch_size"] == 1
    # a subclass has defaults of its own
    alike = {"name": "Alike", "num_factors": 3, "like": (1.0,)}
    assert Alike(3, 2.0, like=(1.0,)).identity() == alike


@pytest.mark.parametrize("method", ALL.values(), ids=ALL)
def test_one_more_setting_with_a_default_leaves_the_identity(method):
    before = type(method)

    @dataclass(frozen=True)
    class Extended(before):
        momentum: float = 0.9

    Extended.__name__ = before.__name__
    settings = {f.name: getattr(method, f.name) for f in fields(method) if f.init}
    assert Extended(**settings).identity() == method.identity()
    different = Extended(**settings, momentum=0.5).identity()
    assert different == {**method.identity(), "momentum": 0.5}
