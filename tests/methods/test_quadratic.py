"""Options of the quadratic method on planted factors that are correlated."""

import pytest
import torch
from toys import directions, planted, recovery

from melbo import MelboError, Quadratic, fit
from melbo.maths.linalg import unit

SETTINGS = {"max_steps": 60, "tol": 1e-9}


def correlated(k, d, common, shared_target):
    """A map of k factors with a common part in v, and in u if asked for; and its v."""
    V, U = unit(directions(k, d) + common * directions(1, d, 9)), directions(k, d, 1)
    U = unit(U + directions(1, d, 5)) if shared_target else U
    return planted(V, U, lambda x: x + x**2), V


@pytest.mark.parametrize("estimates", [1, 2])
@pytest.mark.parametrize("shared_target", [False, True])
@pytest.mark.parametrize(("k", "d", "common"), [(6, 32, 0.4), (6, 32, 0.8), (12, 64, 0.6)])
def test_hybrid_recovers_correlated_factors_that_plain_does_not(
    k, d, common, shared_target, estimates
):
    toy, V = correlated(k, d, common, shared_target)
    plain = fit(toy, Quadratic(k, 1.0, **SETTINGS), progress=False)
    method = Quadratic(k, 1.0, **SETTINGS, estimates=estimates, orthogonal_sweeps=10)
    hybrid = fit(toy, method, progress=False)
    assert recovery(V, plain.features.V).min() < 0.99
    assert recovery(V, hybrid.features.V).min() > 0.9999
    assert hybrid.stats["explained"] > 1.01 * plain.stats["explained"]
    # Δ = Σ (⟨v, θ⟩ + ⟨v, θ⟩²) u has strengths of one
    assert torch.allclose(hybrid.features.alpha, torch.ones(k).double(), atol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_two_estimates_agree_on_incoherent_factors(seed):
    V, U = directions(24, 128, seed), directions(24, 128, seed + 10)
    toy = planted(V, U, lambda x: x + x**2)
    found = fit(toy, Quadratic(48, 1.0, max_steps=30, estimates=2), seed=seed, progress=False)
    assert recovery(V, found.features.V).mean() > 0.99


def test_two_estimates_follow_their_equations():
    toy, _ = correlated(4, 16, 0.5, False)
    method = Quadratic(4, 1.0, estimates=2, orthogonal_sweeps=0)
    state = method.init(toy, torch.Generator().manual_seed(0))
    assert not torch.allclose(state.V, state.W)
    V, W = state.V, state.W
    H = torch.func.jacfwd(torch.func.jacfwd(lambda t: toy.fn(t[None])[0]))
    H = H(torch.zeros(16, dtype=torch.float64))
    # least squares, by pseudo-inverses of Khatri–Rao products
    rows = torch.einsum("mi,mj->mij", V, W).flatten(1)
    U = unit(torch.linalg.lstsq(rows.T, H.flatten(1).T).solution)
    rows = torch.einsum("mk,mj->mkj", U, W).flatten(1)
    moved = unit(torch.linalg.lstsq(rows.T, H.transpose(1, 2).flatten(0, 1)).solution)
    after, _ = method.step(toy, state)
    assert torch.allclose(after.V, moved, atol=1e-4)
    assert after.sweeps == 1


@pytest.mark.parametrize("settings", [{"estimates": 3}, {"orthogonal_sweeps": -1}])
def test_settings_out_of_range_are_refused(settings):
    toy, _ = correlated(4, 16, 0.5, False)
    with pytest.raises(MelboError, match="expected 1 or 2 estimates"):
        fit(toy, Quadratic(4, 1.0, **settings), progress=False)
    assert "estimates" not in Quadratic(4, 1.0).identity()
