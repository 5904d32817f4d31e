import json

import pytest
import torch
from toys import directions, planted, smooth

from melbo import (
    Exponential,
    Linear,
    Melbo,
    MelboError,
    ObjectiveHessian,
    ProjectedLinear,
    Quadratic,
    Random,
    Status,
    fit,
)
from melbo.discovery.fit import fit_seeds


def test_the_first_fit_with_what_the_others_say_of_it():
    toy, method = smooth(30, 20), Exponential(4, 1.5)
    fits = [fit(toy, method, seed, progress=False) for seed in (5, 6, 7)]
    found = fit_seeds(toy, method, 3, seed=5, progress=False)
    assert torch.equal(found.features.V, fits[0].features.V)
    assert torch.equal(found.features.alpha, fits[0].features.alpha)
    about = found.features.meta["stability"]
    V, *others = (f.features.V for f in fits)
    best = [sum(max((v @ w).item() for w in other) for other in others) / 2 for v in V]
    assert about["cosine"] == pytest.approx(best)
    assert about["mean"] == pytest.approx(sum(best) / 4)
    assert about["explained"] == pytest.approx([f.stats["explained"] for f in fits])
    assert (about["seeds"], about["signed"]) == (3, True)
    assert json.loads(json.dumps(about, allow_nan=False)) == about
    rest = {
        k: v for k, v in found.features.meta.items() if k not in ("created", "fit", "stability")
    }
    assert rest == {k: v for k, v in fits[0].features.meta.items() if k not in ("created", "fit")}


def test_a_planted_factor_is_found_again_and_noise_is_not():
    V, U = directions(3, 200), directions(3, 60, 1)
    toy = planted(V, 5 * U, torch.expm1)
    about = fit_seeds(
        toy, Exponential(12, 1.0, orthogonalise="soft"), 3, progress=False
    ).features.meta["stability"]
    planted_ones = (
        fit(toy, Exponential(12, 1.0, orthogonalise="soft"), 0, progress=False).features.V @ V.T
    )
    true = planted_ones.max(1).values > 0.9
    cosine = torch.tensor(about["cosine"])
    assert true.any()
    assert (cosine[true] > 0.9).all()
    drawn = fit_seeds(toy, Random(200, 1.0), 4, progress=False).features.meta["stability"]
    assert drawn["mean"] == pytest.approx(drawn["baseline"], abs=0.01)
    assert drawn["baseline"] > about["baseline"] + 0.05  # more features to match


class Flipping(Linear):
    """Singular vectors whose signs the seed decides."""

    def solve(self, map, generator):
        found = super().solve(map, generator)
        sign = torch.randint(2, (len(found.V), 1), generator=generator).to(found.V) * 2 - 1
        return found._replace(V=found.V * sign, U=found.U * sign)


class Signed(Flipping):
    signed = True


def test_signs_count_where_the_method_says_so():
    assert all(m.signed for m in (Exponential, Melbo, Random))
    assert not any(m.signed for m in (Linear, ProjectedLinear, Quadratic, ObjectiveHessian))
    assert "signed" not in Linear(4, 1.0).describe()
    blind, seeing = (
        fit_seeds(smooth(12, 9), kind(6, 1.0), 3, progress=False).features.meta["stability"]
        for kind in (Flipping, Signed)
    )
    assert blind["cosine"] == pytest.approx([1.0] * 6)
    assert seeing["mean"] < 0.9
    assert blind["signed"] is False
    assert blind["baseline"] > seeing["baseline"]


def test_what_draws_nothing_is_found_again_exactly():
    assert fit_seeds(smooth(12, 9), Linear(4, 1.0), 2, progress=False).features.meta["stability"][
        "cosine"
    ] == pytest.approx([1.0] * 4)


METHOD = Exponential(3, 1.0, max_steps=4, tol=0.0)


@pytest.fixture
def press(monkeypatch):
    """Presses Ctrl-C in a sweep of the fit with a seed."""

    def press(seed, sweep):
        init, step, at = Exponential.init, Exponential.step, []

        def begin(self, map, generator):
            at[:] = [generator.initial_seed(), 0]
            return init(self, map, generator)

        def take(self, map, state):
            at[1] += 1
            if at == [seed, sweep]:
                raise KeyboardInterrupt
            return step(self, map, state)

        monkeypatch.setattr(Exponential, "init", begin)
        monkeypatch.setattr(Exponential, "step", take)

    return press


@pytest.mark.parametrize(
    ("seed", "sweep", "finished"), [(1, 1, 1), (1, 3, 1), (2, 1, 2), (2, 3, 2), (4, 1, 4)]
)
def test_an_interrupt_of_a_later_fit_keeps_those_that_are_finished(press, seed, sweep, finished):
    first = fit(smooth(12, 9), METHOD, 0, progress=False).features
    alone = fit_seeds(smooth(12, 9), METHOD, finished, progress=False).features
    press(seed, sweep)
    found = fit_seeds(smooth(12, 9), METHOD, 4, progress=False)
    assert found.status is Status.MAX_STEPS
    assert torch.equal(found.features.V, first.V)
    assert found.features.meta["fit"]["status"] == "max_steps"
    assert found.features.meta.get("stability") == alone.meta.get("stability")
    assert ("stability" in found.features.meta) == (finished > 1)


def test_an_interrupt_of_the_first_fit_ends_it_all(press):
    press(0, 3)
    found = fit_seeds(smooth(12, 9), METHOD, 4, progress=False)
    assert found.status is Status.INTERRUPTED
    assert len(found.history) == 2
    assert "stability" not in found.features.meta


def test_an_interrupt_before_anything_is_found_is_passed_on(press):
    press(0, 1)
    with pytest.raises(KeyboardInterrupt):
        fit_seeds(smooth(12, 9), METHOD, 3, progress=False)


def test_one_seed_is_a_plain_fit_and_none_is_refused():
    found = fit_seeds(smooth(12, 9), METHOD, 1, progress=False)
    assert "stability" not in found.features.meta
    assert found.status is Status.MAX_STEPS
    with pytest.raises(MelboError, match="got seeds=0: expected at least 1"):
        fit_seeds(smooth(12, 9), METHOD, 0)
