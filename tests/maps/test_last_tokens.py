"""CausalMap at the last tokens: the short path against the long one, and steering these alone."""

import pytest
import torch
from cases import FLOAT32_INSIDE, TINY, tiny_model
from slow_maps import (
    EQUAL,
    NO_FORWARD_MODE,
    RAGGED,
    assert_same,
    by_hooks,
    oracles,
    prompts_of,
    slow_twin,
)
from toys import directions

from melbo import CausalMap, Exponential, MelboError, fit


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama", dtype=torch.float64)


@pytest.mark.parametrize("name", sorted(TINY))
def test_every_oracle_is_the_same_the_short_way_and_the_long_way(name):
    args, settings = (tiny_model(name), EQUAL, 1, 2), {"prompt_batch": 2, "tokens_per_pass": 99}
    fast = CausalMap(*args, **settings)
    short = oracles(fast, name)
    # warnings are errors here: were vmap to warn that it is slow, this would show it
    assert fast._shares_zero == (name not in NO_FORWARD_MODE)
    tolerance = 1e-6 if name in FLOAT32_INSIDE else 1e-9
    for path in ("tail", "shared"):
        assert_same(short, oracles(slow_twin(*args, **{path: True}, **settings), name), tolerance)


@pytest.mark.parametrize("name", sorted(TINY))
def test_the_last_tokens_alone_are_steered_as_by_hooks_and_the_long_way(name):
    args, settings = (
        (tiny_model(name), EQUAL, 0, 2),
        {"prompt_batch": 2, "tokens_per_pass": 12, "positions": "target"},
    )
    V, U = directions(3, args[0].width, 1), directions(3, args[0].width, 2)
    fast, slow = CausalMap(*args, **settings), slow_twin(*args, **settings)
    tolerance = 1e-6 if name in FLOAT32_INSIDE else 1e-9
    truth = by_hooks(args[0], EQUAL, 0, 2, V, "target").mean((1, 2))
    got, want = (
        {"value": m.value(V)}
        | dict(zip(("value with vjp", "vjp"), m.value_and_vjp(V, U), strict=True))
        for m in (fast, slow)
    )
    assert_same({"value": got["value"]}, {"value": truth}, tolerance)
    assert_same(got, want, tolerance)
    everywhere = CausalMap(*args).value(V)
    assert (everywhere - truth).norm() > 0.01 * truth.norm()


@pytest.mark.parametrize("name", ["llama", "gemma2", "mixtral", "mpt", "lfm2"])
def test_derivatives_where_the_last_tokens_alone_are_steered(name):
    args, settings = (
        (tiny_model(name), EQUAL, 0, 2),
        {"positions": "target", "prompt_batch": 2, "tokens_per_pass": 99},
    )
    fast = CausalMap(*args, **settings)
    assert_same(
        oracles(fast, name),
        oracles(slow_twin(*args, **settings), name),
        1e-6 if name in FLOAT32_INSIDE else 1e-9,
    )
    assert fast._shares_zero


@pytest.mark.parametrize(("positions", "first"), [("all", 7), ("target", 3)])
def test_passes_run_no_more_tokens_than_they_must(positions, first):
    lm = tiny_model("llama")
    cmap, tokens = CausalMap(lm, EQUAL, 1, 3, positions=positions, prompt_batch=2), []
    for i, block in enumerate(lm.blocks):
        block.mlp.register_forward_pre_hook(
            lambda _, args, i=i: tokens.append((i, args[0].shape[-2]))
        )
    V = directions(2, lm.width)
    # the map sees once that the hooks only look on
    cmap.value(V)
    for oracle in (
        lambda: cmap.value(V),
        lambda: cmap.value_and_vjp(V, V),
        lambda: cmap.jvp(V),
        lambda: cmap.vjp(V),
        lambda: cmap.hvp(V, V),
    ):
        tokens.clear()
        oracle()
        assert tokens == [(1, first), (2, 3)]


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"skip_first": True},
        {"target_tokens": 1},
        {"target_tokens": 4},  # all of the second prompt
        {"target_tokens": 4, "skip_first": True},
    ],
)
@pytest.mark.parametrize("positions", ["all", "target"])
def test_ragged_prompts_are_steered_as_by_hooks(lm, positions, settings, batch):
    V = directions(2, lm.width)
    truth = by_hooks(lm, prompts_of(), 1, 3, V, positions, **settings)
    mean = CausalMap(lm, prompts_of(), 1, 3, positions=positions, prompt_batch=batch, **settings)
    stacked = CausalMap(
        lm,
        prompts_of(),
        1,
        3,
        positions=positions,
        prompt_batch=batch,
        concatenate=True,
        **settings,
    )
    assert torch.allclose(mean.value(V), truth.mean((1, 2)), atol=1e-10)
    assert torch.allclose(stacked.value(V), truth.flatten(1), atol=1e-10)


@pytest.mark.parametrize(
    "settings", [{}, {"skip_first": True}, {"normalise_target": True}, {"concatenate": True}]
)
def test_last_tokens_of_ragged_prompts_do_not_depend_on_the_batch(lm, settings):
    # the first two are of one length, the others are not
    rows = (RAGGED[0], RAGGED[2][:7], *RAGGED)
    one, two = (
        CausalMap(lm, prompts_of(rows), 1, 3, positions="target", prompt_batch=n, **settings)
        for n in (1, 2)
    )
    assert [p.cost for p in one.pieces] == [3] * 5
    assert [p.cost for p in two.pieces] == [2 * 3, 2 * 7, 3]
    assert_same(oracles(two, "llama"), oracles(one, "llama"), 1e-9)


def test_positions_are_described_and_others_refused(lm):
    first = CausalMap(lm, prompts_of(), 1, 3, positions="target")
    saved = first.describe()
    V = directions(2, lm.width)
    assert saved["positions"] == "target"
    assert torch.equal(CausalMap.from_description(lm, saved).value(V), first.value(V))
    del saved["positions"]  # as written before there was a choice
    assert torch.equal(
        CausalMap.from_description(lm, saved).value(V), CausalMap(lm, prompts_of(), 1, 3).value(V)
    )
    for wrong in ("last", "prompt", None):
        with pytest.raises(MelboError, match=f"positions is {wrong!r}: expected 'all' or 'target'"):
            CausalMap(lm, prompts_of(), 1, 3, positions=wrong)


def test_features_of_the_last_tokens_are_fitted(lm):
    cmap = CausalMap(lm, prompts_of(), 1, 3, positions="target")
    assert fit(cmap, Exponential(2, 1.0), progress=False).stats["explained"] > 0
