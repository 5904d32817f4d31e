import gc
import sys
from types import SimpleNamespace

import dense
import psutil
import pytest
import torch
from cases import FLOAT32_INSIDE, TINY, WINDOW, tiny_model
from toys import directions

import melbo.maps.residual
from melbo import CausalMap, Exponential, MelboError, Prompts, fit
from melbo.maps.jacobian import Jacobian
from melbo.models.replay import call_block

RAGGED = ((5, 6, 7, 8, 9, 10, 11), (12, 13, 14, 15), (16, 17, 18, 19, 20, 21, 22, 23, 24))


def prompts(rows=RAGGED):
    return Prompts(tuple(f"prompt {i}" for i in range(len(rows))), tuple(rows))


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama", dtype=torch.float64)


@pytest.fixture(scope="module")
def cmap(lm):
    return CausalMap(lm, prompts(), 1, 3)


def test_value_is_the_mean_change_of_the_target_states(lm, cmap):
    # the definition, by hooks on the whole model, one prompt and one direction at a time
    theta = 0.5 * directions(3, lm.width)
    expected = torch.zeros(3, lm.width, dtype=torch.float64)
    for tokens in RAGGED:
        plain = lm.model(torch.tensor([tokens]), output_hidden_states=True).hidden_states[3][0]
        for i, v in enumerate(theta):
            handle = lm.blocks[1].register_forward_pre_hook(
                lambda b, args, kw, v=v: ((args[0] + v, *args[1:]), kw), with_kwargs=True
            )
            steered = lm.model(torch.tensor([tokens]), output_hidden_states=True).hidden_states[3][
                0
            ]
            handle.remove()
            expected[i] += (steered - plain)[-3:].mean(0) / len(RAGGED)
    assert torch.allclose(cmap.value(theta), expected, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [
        ("gpt2", torch.float64, 1e-8),
        (
            "llama",
            torch.float64,
            1e-6,
        ),  # its norms compute in single precision whatever the model does
        ("llama", torch.float32, 1e-4),
        ("gemma2", torch.float32, 1e-4),
    ],
)
def test_oracles_through_a_real_slice_equal_dense_derivatives(name, dtype, tolerance):
    short = prompts((RAGGED[0][:5], RAGGED[1]))
    ours = CausalMap(tiny_model(name, dtype=dtype), short, 1, 3)
    truth = CausalMap(tiny_model(name, dtype=torch.float64), short, 1, 3)
    V, W, U = (directions(3, ours.d_source, seed) for seed in (1, 2, 3))
    J, H = dense.jacobian(truth), dense.hessian(truth)

    def close(a, b):
        return (a.double() - b).norm() <= tolerance * b.norm()

    assert close(ours.jvp(V), V @ J.T)
    assert close(ours.value_and_vjp(torch.zeros_like(V), U)[1], U @ J)
    assert close(ours.vjp(U), U @ J)
    assert close(Jacobian(ours).to_dense(), J)
    assert close(ours.bilinear(V, W), torch.einsum("oij,ki,kj->ko", H, V, W))
    assert close(ours.hvp(U, V), torch.einsum("oij,ko,ki->kj", H, U, V))


NO_FORWARD_MODE = {
    "bloom",
    "recurrent_gemma",
}  # torch cannot push tangents through their own autograd functions


@pytest.mark.parametrize("name", sorted(NO_FORWARD_MODE & TINY.keys()))
def test_architectures_without_forward_mode_say_so_and_keep_the_first_order(name):
    cmap = CausalMap(tiny_model(name), prompts(RAGGED[:1]), 1, 2)
    V = directions(2, cmap.d_source)
    for oracle in (lambda: cmap.jvp(V), lambda: cmap.bilinear(V, V), lambda: cmap.hvp(V, V)):
        with pytest.raises(
            MelboError, match="cannot be differentiated in forward mode.*give a scale"
        ):
            oracle()
    assert fit(cmap, Exponential(2, 1.0), progress=False).stats["explained"] > 0


@pytest.mark.parametrize("name", sorted(TINY.keys() - NO_FORWARD_MODE))
def test_second_order_oracles_agree_on_every_architecture(name):
    # H(·, v, w) and H(u, v, ·) go through different derivative rules; a wrong rule in either shows
    cmap = CausalMap(tiny_model(name), prompts(RAGGED[:1]), 1, 2)
    V, W, U = (directions(2, cmap.d_source, seed) for seed in (1, 2, 3))
    forward = (cmap.bilinear(V, W) * U).sum(-1)
    assert forward.abs().min() > 1e-9
    assert torch.allclose(forward, (cmap.hvp(U, V) * W).sum(-1), rtol=1e-4, atol=1e-8)
    assert torch.allclose(
        (cmap.jvp(V) * U).sum(-1),
        (cmap.value_and_vjp(torch.zeros_like(V), U)[1] * V).sum(-1),
        rtol=1e-4,
        atol=1e-8,
    )


# --- the short ways, and the long way that each stands for


@pytest.fixture
def slowly(monkeypatch):
    """Makes a map that replays whole blocks (``tail=False``) or gives each row its own forward pass (``shared=False``), or both."""

    def make(*args, tail=False, shared=False, **settings):
        with monkeypatch.context() as patch:
            if not tail:
                patch.setattr(melbo.maps.residual, "find_tail", lambda part, length: None)
            twin = CausalMap(*args, **settings)
        twin._shares_zero = shared
        return twin

    return make


def oracles(cmap, name, k=2):
    """What every oracle that the architecture has says of ``k`` random directions."""
    V, W, U = (
        directions(k, cmap.d_source, 1),
        directions(k, cmap.d_source, 2),
        directions(k, cmap.d_target, 3),
    )
    value, gradient = cmap.value_and_vjp(V, U)
    out = {
        "value": cmap.value(V),
        "value with vjp": value,
        "vjp": gradient,
        "vjp at zero": cmap.vjp(U),
    }
    if name not in NO_FORWARD_MODE:
        out |= {"jvp": cmap.jvp(V), "hvp": cmap.hvp(U, V), "bilinear": cmap.bilinear(V, W)}
    return out


def assert_same(got, want, tolerance):
    assert got.keys() == want.keys()
    for oracle in want:
        assert want[oracle].norm() > 0, oracle
        assert (got[oracle] - want[oracle]).norm() <= tolerance * want[oracle].norm(), oracle


EQUAL = prompts(
    ((5, 6, 7, 8, 9, 10, 11), (12, 13, 14, 15, 16, 17, 18))
)  # as long as each other, and longer than any window
assert WINDOW < 7


@pytest.mark.parametrize("name", sorted(TINY))
def test_every_oracle_is_the_same_the_short_way_and_the_long_way(name, slowly):
    args, settings = (tiny_model(name), EQUAL, 1, 2), {"prompt_batch": 2, "tokens_per_pass": 99}
    fast = CausalMap(*args, **settings)
    short = oracles(fast, name)
    # warnings are errors here: were vmap to warn that it is slow, this would show it
    assert fast._shares_zero == (name not in NO_FORWARD_MODE)
    tolerance = 1e-6 if name in FLOAT32_INSIDE else 1e-9
    for way in ("tail", "shared"):
        assert_same(short, oracles(slowly(*args, **{way: True}, **settings), name), tolerance)


@torch.no_grad()
def by_hooks(
    lm,
    prompts,
    source,
    target,
    theta,
    positions="all",
    skip_first=False,
    target_tokens=3,
    inside="",
):
    """Changes of the model's own target states, ``[k, prompts, target_tokens, d]``: steered by hooks, one prompt and one direction at a time.

    What leaves the last block, or the module ``inside`` it.
    """

    def leaving(tokens, v):
        steered = torch.zeros(1, len(tokens), 1, dtype=lm.dtype)
        steered[:, -target_tokens if positions == "target" else 0 :] = 1
        steered[:, : 1 if skip_first else 0] = 0

        def push(block, args, kwargs):
            if args:
                return (args[0] + v * steered, *args[1:]), kwargs
            return args, kwargs | {"hidden_states": kwargs["hidden_states"] + v * steered}

        out = []
        handles = [
            lm.blocks[source].register_forward_pre_hook(push, with_kwargs=True),
            lm.blocks[target - 1]
            .get_submodule(inside)
            .register_forward_hook(
                lambda _, args, o: out.append(o[0] if isinstance(o, tuple) else o)
            ),
        ]
        try:
            lm.model(torch.tensor([tokens]), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return out[0][0, -target_tokens:]

    return torch.stack(
        [
            torch.stack([leaving(tokens, v) - leaving(tokens, 0 * v) for tokens in prompts.tokens])
            for v in theta
        ]
    )


@pytest.mark.parametrize("name", sorted(TINY))
def test_the_last_tokens_alone_are_steered_as_by_hooks_and_the_long_way(name, slowly):
    args, settings = (
        (tiny_model(name), EQUAL, 0, 2),
        {"prompt_batch": 2, "tokens_per_pass": 12, "positions": "target"},
    )
    V, U = directions(3, args[0].width, 1), directions(3, args[0].width, 2)
    fast, slow = CausalMap(*args, **settings), slowly(*args, **settings)
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
def test_derivatives_where_the_last_tokens_alone_are_steered(name, slowly):
    args, settings = (
        (tiny_model(name), EQUAL, 0, 2),
        {"positions": "target", "prompt_batch": 2, "tokens_per_pass": 99},
    )
    fast = CausalMap(*args, **settings)
    assert_same(
        oracles(fast, name),
        oracles(slowly(*args, **settings), name),
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
    truth = by_hooks(lm, prompts(), 1, 3, V, positions, **settings)
    mean = CausalMap(lm, prompts(), 1, 3, positions=positions, prompt_batch=batch, **settings)
    stacked = CausalMap(
        lm, prompts(), 1, 3, positions=positions, prompt_batch=batch, concatenate=True, **settings
    )
    assert torch.allclose(mean.value(V), truth.mean((1, 2)), atol=1e-10)
    assert torch.allclose(stacked.value(V), truth.flatten(1), atol=1e-10)


@pytest.mark.parametrize(
    "settings", [{}, {"skip_first": True}, {"normalise_target": True}, {"concatenate": True}]
)
def test_last_tokens_of_ragged_prompts_do_not_depend_on_the_batch(lm, settings):
    rows = (
        RAGGED[0],
        RAGGED[2][:7],
        *RAGGED,
    )  # the first two are of one length, the others are not
    one, two = (
        CausalMap(lm, prompts(rows), 1, 3, positions="target", prompt_batch=n, **settings)
        for n in (1, 2)
    )
    assert [p.cost for p in one.pieces] == [3] * 5
    assert [p.cost for p in two.pieces] == [2 * 3, 2 * 7, 3]
    assert_same(oracles(two, "llama"), oracles(one, "llama"), 1e-9)


def test_positions_are_described_and_others_refused(lm):
    first = CausalMap(lm, prompts(), 1, 3, positions="target")
    saved = first.describe()
    V = directions(2, lm.width)
    assert saved["positions"] == "target"
    assert torch.equal(CausalMap.from_description(lm, saved).value(V), first.value(V))
    del saved["positions"]  # as written before there was a choice
    assert torch.equal(
        CausalMap.from_description(lm, saved).value(V), CausalMap(lm, prompts(), 1, 3).value(V)
    )
    for wrong in ("last", "prompt", None):
        with pytest.raises(MelboError, match=f"positions is {wrong!r}: expected 'all' or 'target'"):
            CausalMap(lm, prompts(), 1, 3, positions=wrong)


def test_features_of_the_last_tokens_are_fitted(lm):
    cmap = CausalMap(lm, prompts(), 1, 3, positions="target")
    assert fit(cmap, Exponential(2, 1.0), progress=False).stats["explained"] > 0


# --- attention's part of the last block


#: The modules that, times this, attention adds to the stream with.
ATTENTION = {
    "llama": ("self_attn", 1.0),
    "gpt2": ("attn", 1.0),
    "gemma3": ("post_attention_layernorm", 1.0),
    "gptj": ("attn", 1.0),  # beside the MLP
    "falcon_grouped": ("self_attention", 1.0),  # beside the MLP, added up in place
    "mixtral": ("self_attn", 1.0),
    "granite": ("self_attn", 0.5),
    "bloom": ("self_attention.dense", 1.0),  # which hands on the stream with it
    "recurrent_gemma": ("temporal_block", 1.0),  # a recurrence
}


@pytest.mark.parametrize("positions", ["all", "target"])
@pytest.mark.parametrize("name", sorted(ATTENTION))
def test_what_attention_adds_is_read_as_by_hooks(name, positions):
    lm = tiny_model(name)
    inside, factor = ATTENTION[name]
    V = directions(2, lm.width)
    for texts in (prompts(), EQUAL):
        truth = factor * by_hooks(lm, texts, 0, 2, V, positions, inside=inside)
        assert (by_hooks(lm, texts, 0, 2, V, positions) - truth).norm() > 0.1 * truth.norm()
        for batch in (None, 3):
            mean, stacked = (
                CausalMap(
                    lm,
                    texts,
                    0,
                    2,
                    positions=positions,
                    read="attention",
                    prompt_batch=batch,
                    concatenate=c,
                )
                for c in (False, True)
            )
            tolerance = (1e-6 if name in FLOAT32_INSIDE else 1e-9) * truth.norm()
            assert (mean.value(V) - truth.mean((1, 2))).norm() < tolerance
            assert (stacked.value(V) - truth.flatten(1)).norm() < tolerance
            assert (mean.d_target, stacked.d_target) == (lm.width, truth[0].numel())
            assert mean.value(torch.zeros_like(V)).norm() < tolerance


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "gptj", "mixtral", "granite", "lfm2"])
@pytest.mark.parametrize("positions", ["all", "target"])
def test_oracles_of_what_attention_adds_the_short_way_and_the_long_way(name, positions, slowly):
    args, settings = (
        (tiny_model(name), EQUAL, 1, 3),
        {"prompt_batch": 2, "tokens_per_pass": 99, "positions": positions, "read": "attention"},
    )
    fast = CausalMap(*args, **settings)
    short = oracles(fast, name)
    assert fast._shares_zero
    tolerance = 1e-6 if name in FLOAT32_INSIDE else 1e-9
    for way in ("tail", "shared"):
        assert_same(short, oracles(slowly(*args, **{way: True}, **settings), name), tolerance)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "gptj", "mixtral"])
def test_slopes_of_what_attention_adds_are_its_derivatives(name):
    cmap = CausalMap(tiny_model(name), prompts(), 1, 2, read="attention")
    V, W, U = (directions(3, cmap.d_source, seed) for seed in (1, 2, 3))
    step = 1e-3  # most norms compute in single precision

    def slope(point):
        return (cmap.value(point + step * V) - cmap.value(point - step * V)) / (2 * step)

    assert (slope(0) - cmap.jvp(V)).norm() < 1e-3 * cmap.jvp(V).norm()
    value, gradient = cmap.value_and_vjp(0.3 * W, U)
    assert torch.allclose(value, cmap.value(0.3 * W), atol=1e-10)
    along = (slope(0.3 * W) * U).sum(-1)
    assert (along - (gradient * V).sum(-1)).norm() < 1e-3 * along.norm()


def test_oracles_of_what_attention_adds_equal_dense_derivatives():
    cmap = CausalMap(
        tiny_model("gemma3"), prompts((EQUAL.tokens[0], RAGGED[1])), 1, 2, read="attention"
    )  # the last block's tail, and a whole one
    V, W, U = (directions(3, cmap.d_source, seed) for seed in (1, 2, 3))
    J, H = dense.jacobian(cmap), dense.hessian(cmap)

    def close(a, b):
        return (a - b).norm() <= 1e-6 * b.norm()

    assert close(cmap.jvp(V), V @ J.T)
    assert close(cmap.vjp(U), U @ J)
    assert close(cmap.value_and_vjp(torch.zeros_like(V), U)[1], U @ J)
    assert close(cmap.bilinear(V, W), torch.einsum("oij,ki,kj->ko", H, V, W))
    assert close(cmap.hvp(U, V), torch.einsum("oij,ko,ki->kj", H, U, V))


@pytest.mark.parametrize(
    "settings",
    [{"skip_first": True}, {"target_tokens": 1}, {"normalise_target": True}, {"concatenate": True}],
)
def test_what_attention_adds_to_ragged_prompts_does_not_depend_on_the_batch(lm, settings):
    alone, together = (
        CausalMap(lm, prompts(), 1, 3, read="attention", prompt_batch=n, **settings) for n in (1, 3)
    )
    assert_same(oracles(together, "llama"), oracles(alone, "llama"), 1e-9)


def test_what_attention_adds_is_normalised_to_its_own_mean_norm(lm):
    normal, v = (
        CausalMap(lm, EQUAL, 1, 3, read="attention", normalise_target=True),
        directions(1, lm.width),
    )
    before = torch.cat([part.output[:, -3:] for part in normal.slices])
    after = before + by_hooks(lm, EQUAL, 1, 3, v, inside="self_attn")[0]
    change = torch.nn.functional.normalize(after, dim=-1) - torch.nn.functional.normalize(
        before, dim=-1
    )
    assert torch.allclose(
        normal.value(v), before.norm(dim=-1).mean() * change.mean((0, 1)), atol=1e-10
    )
    assert normal.target_norm == pytest.approx(before.norm(dim=-1).mean().item())


@pytest.mark.parametrize("positions", ["all", "target"])
def test_nothing_behind_attention_runs_where_it_is_read(positions):
    lm, ran = tiny_model("llama"), []
    cmap = CausalMap(lm, EQUAL, 1, 3, positions=positions, read="attention")
    for i, block in enumerate(lm.blocks):
        block.mlp.register_forward_pre_hook(lambda _, args, i=i: ran.append(i))
    before = len(lm.blocks[2].self_attn.o_proj._forward_hooks)
    V = directions(2, lm.width)
    for oracle in (
        lambda: cmap.value(V),
        lambda: cmap.value_and_vjp(V, V),
        lambda: cmap.jvp(V),
        lambda: cmap.hvp(V, V),
    ):
        ran.clear()
        oracle()
        assert ran == [1]
    assert len(lm.blocks[2].self_attn.o_proj._forward_hooks) == before


def test_the_block_whose_attention_is_read_is_never_compiled(monkeypatch):
    lm, seen = tiny_model("llama", torch.float32), []

    def note(block, *args):
        seen.append(list(lm.blocks).index(block))
        return call_block(block, *args)

    monkeypatch.setattr(melbo.maps.residual, "call_compiled", note)
    V = directions(2, lm.width)
    for texts in (EQUAL, prompts()):
        seen.clear()
        CausalMap(lm, texts, 0, 3, read="attention", compile=True, prompt_batch=3).value_and_vjp(
            V, V
        )
        assert set(seen) == {0, 1}


def test_half_precision_reads_attention_in_single_precision():
    V = directions(2, 32)
    cmap, exact = (
        CausalMap(tiny_model("llama", dtype=d), prompts(), 1, 3, read="attention")
        for d in (torch.bfloat16, torch.float64)
    )
    assert cmap.value(V).dtype == torch.float32
    assert (cmap.value(V).double() - exact.value(V)).norm() < 0.05 * exact.value(V).norm()


@pytest.mark.parametrize("positions", ["all", "target"])
def test_features_of_what_attention_adds_are_fitted(lm, positions):
    cmap = CausalMap(lm, prompts(), 1, 3, read="attention", positions=positions)
    assert fit(cmap, Exponential(2, 1.0), progress=False).stats["explained"] > 0


def test_what_is_read_is_described_and_what_cannot_be_is_refused(lm):
    first = CausalMap(lm, prompts(), 1, 3, read="attention")
    saved = first.describe()
    V = directions(2, lm.width)
    assert saved["read"] == "attention"
    assert torch.equal(CausalMap.from_description(lm, saved).value(V), first.value(V))
    del saved["read"]  # as written before there was a choice
    assert torch.equal(
        CausalMap.from_description(lm, saved).value(V), CausalMap(lm, prompts(), 1, 3).value(V)
    )
    for wrong in ("residual", "mlp", None):
        with pytest.raises(
            MelboError, match=f"read is {wrong!r}: expected 'stream' or 'attention'"
        ):
            CausalMap(lm, prompts(), 1, 3, read=wrong)
    mute = tiny_model("llama")
    mute.blocks[2].self_attn.v_proj.weight.zero_()
    CausalMap(mute, prompts(), 1, 2, read="attention")
    with pytest.raises(
        MelboError, match="block 2 of llama writes nothing that depends on other tokens"
    ):
        CausalMap(mute, prompts(), 1, 3, read="attention")
    with pytest.raises(
        MelboError,
        match="what attention adds to hidden_states.2. of the steered model is not finite at scale 1e.40",
    ):
        fit(
            CausalMap(tiny_model("gpt2", torch.float32), prompts(), 1, 2, read="attention"),
            Exponential(2, 1e40),
            progress=False,
        )


# --- memory


def free_memory(monkeypatch, available):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("positions", ["all", "target"])
def test_what_a_pass_keeps_grows_with_its_rows(lm, positions, batch):
    cmap = CausalMap(lm, prompts(), 1, 3, positions=positions, prompt_batch=batch)
    for piece in cmap.pieces:
        one, two, five = (cmap._kept(piece, rows) for rows in (1, 2, 5))
        assert 0 < five - one == 4 * (two - one)


def test_measuring_memory_holds_none(lm):
    piece = (cmap := CausalMap(lm, prompts(), 1, 3)).pieces[0]

    def held():
        gc.collect()
        return sum(type(o) is torch.Tensor for o in gc.get_objects())

    before = held()
    cmap._kept(piece, 2)
    assert held() == before


def test_chunks_shrink_with_the_free_memory(lm, monkeypatch):
    usual = []
    for available in (10**12, 10**7, 10**6, 1):
        free_memory(monkeypatch, available)
        usual.append(CausalMap(lm, prompts(), 1, 3).tokens_per_pass)
    assert usual[0] == 1200
    assert 1200 > usual[1] > 5 * usual[2] > 0
    assert usual[3] == 1
    assert CausalMap(lm, prompts(), 1, 3, tokens_per_pass=99).tokens_per_pass == 99


@pytest.mark.parametrize("lengths", [(40, 5), (5, 40), (40, 40, 5, 6), (5, 6, 40, 40)])
@pytest.mark.parametrize("positions", ["all", "target"])
def test_no_pass_keeps_more_than_the_free_memory(lm, monkeypatch, positions, lengths):
    free_memory(monkeypatch, available := 4_000_000)
    texts = prompts([tuple(range(5, 5 + n)) for n in lengths])
    cmap = CausalMap(lm, texts, 1, 3, positions=positions, prompt_batch=len(lengths) // 2)
    for piece in cmap.pieces:
        rows = cmap.tokens_per_pass // piece.cost
        one, two = cmap._kept(piece, 1), cmap._kept(piece, 2)
        assert (
            rows * (two - one) <= available
        )  # half of it, give or take what differs between prompts


@pytest.mark.parametrize(
    "settings",
    [{"prompt_batch": 2}, {"prompt_batch": 3}, {"tokens_per_pass": 1}, {"tokens_per_pass": 40}],
)
def test_invariant_to_prompt_batching_padding_and_chunks(lm, cmap, settings):
    other = CausalMap(lm, prompts(), 1, 3, **settings)
    V, U = directions(5, lm.width, 1), directions(5, lm.width, 2)
    assert torch.allclose(cmap.value(V), other.value(V), atol=1e-10)
    assert torch.allclose(cmap.jvp(V), other.jvp(V), atol=1e-10)
    assert torch.allclose(cmap.vjp(U), other.vjp(U), atol=1e-10)
    assert torch.allclose(cmap.hvp(U, V), other.hvp(U, V), atol=1e-10)
    assert torch.allclose(cmap.bilinear(V, V), other.bilinear(V, V), atol=1e-10)

    def unit(d, rows):
        return d / d.norm(dim=-1, keepdim=True)

    for ours, theirs in zip(cmap.value_and_vjp(V, unit), other.value_and_vjp(V, unit), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-10)


def test_prompts_go_by_length():
    lengths = (9, 4, 9, 5, 9, 30)
    some = prompts([tuple(range(5, 5 + n)) for n in lengths])
    assert some.by_length(1000, 0) == [[1], [3], [0, 2, 4], [5]]
    assert some.by_length(18, 0) == [[1], [3], [0, 2], [4], [5]]
    assert some.by_length(1000, 0.12) == [[1, 3], [0, 2, 4], [5]]  # one token of padding for nine
    assert some.by_length(1000, 10) == [[1, 3, 0, 2, 4, 5]]
    assert some.by_length(1, 10) == [[i] for i in (1, 3, 0, 2, 4, 5)]


@pytest.mark.parametrize("positions", ["all", "target"])
@pytest.mark.parametrize("side_by_side", [10, 40, 320])
@pytest.mark.parametrize("concatenate", [False, True])
def test_prompts_side_by_side_by_length_give_what_each_gives_alone(
    lm, monkeypatch, positions, side_by_side, concatenate
):
    monkeypatch.setattr(sys.modules["melbo.maps.residual"], "_SIDE_BY_SIDE", side_by_side)
    lengths = (9, 4, 9, 10, 9, 13)
    some = prompts([tuple(range(3 * i, 3 * i + n)) for i, n in enumerate(lengths)])
    settings = {"positions": positions, "concatenate": concatenate}
    together, alone = (
        CausalMap(lm, some, 1, 3, **settings),
        CausalMap(lm, some, 1, 3, prompt_batch=1, **settings),
    )
    assert (len(together.pieces) < 6) == (side_by_side > 10)
    assert sorted(i for group in together.groups for i in group) == list(range(6))
    assert_same(oracles(together, "llama"), oracles(alone, "llama"), 1e-9)


def test_invariant_to_the_tokenizers_padding_side(lm, cmap):
    V = directions(2, lm.width)
    for side in ("left", "right"):
        lm.tokenizer.padding_side = side
        assert torch.allclose(
            CausalMap(lm, prompts(), 1, 3, prompt_batch=3).value(V), cmap.value(V), atol=1e-10
        )


def test_mean_over_prompts_is_the_mean_of_the_prompts_maps(lm, cmap):
    V = directions(2, lm.width)
    alone = [CausalMap(lm, prompts((row,)), 1, 3).value(V) for row in RAGGED]
    assert torch.allclose(cmap.value(V), torch.stack(alone).mean(0), atol=1e-10)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_concatenate_stacks_prompts_and_positions(lm, cmap, batch):
    stacked = CausalMap(lm, prompts(), 1, 3, concatenate=True, prompt_batch=batch)
    V = directions(4, lm.width)
    assert stacked.d_target == 3 * 3 * lm.width
    assert torch.allclose(stacked.value(V).view(4, 9, lm.width).mean(1), cmap.value(V), atol=1e-10)
    assert torch.allclose(stacked.jvp(V).view(4, 9, lm.width).mean(1), cmap.jvp(V), atol=1e-10)
    U = directions(4, stacked.d_target, 1)
    for oracle in (stacked.value_and_vjp(torch.zeros_like(V), U)[1], stacked.vjp(U)):
        assert torch.allclose(oracle, U @ Jacobian(stacked).to_dense(), atol=1e-10)
    assert torch.allclose(
        (stacked.bilinear(V, V) * U).sum(-1), (stacked.hvp(U, V) * V).sum(-1), atol=1e-10
    )


def test_normalised_target_reads_directions_only(lm):
    plain, normal = (
        CausalMap(lm, prompts(), 1, 3),
        CausalMap(lm, prompts(), 1, 3, normalise_target=True),
    )
    part, expected = plain.slices, torch.zeros(1, lm.width, dtype=torch.float64)
    v = directions(1, lm.width)
    for s in part:
        before, after = s.output[0, -3:], s.replay(s.hidden + v)[0, -3:]
        expected += (
            after / after.norm(dim=-1, keepdim=True) - before / before.norm(dim=-1, keepdim=True)
        ).mean(0) / len(part)
    assert torch.allclose(normal.value(v), expected * normal.target_norm, atol=1e-10)


def test_skip_first_leaves_the_first_token_unsteered(lm):
    skipping = CausalMap(lm, prompts(), 1, 3, skip_first=True, prompt_batch=3)
    v = directions(1, lm.width)
    expected = torch.zeros(1, lm.width, dtype=torch.float64)
    for tokens in RAGGED:
        part = lm.capture(
            torch.tensor([tokens]), torch.ones(1, len(tokens), dtype=torch.bool), 1, 3
        )
        steered = part.hidden.clone()
        steered[:, 1:] += v
        expected += (part.replay(steered) - part.output)[:, -3:].mean(1) / len(RAGGED)
    assert torch.allclose(skipping.value(v), expected, atol=1e-10)


def test_source_norm_leaves_the_first_token_out(lm):
    one = CausalMap(lm, prompts(RAGGED[:1]), 1, 3)
    assert one.source_norm == pytest.approx(
        one.slices[0].hidden[0, 1:].norm(dim=-1).median().item()
    )


def test_negative_layers_count_from_the_end(lm):
    cmap = CausalMap(lm, prompts(), -4, -2)
    assert (cmap.source, cmap.target) == (lm.depth - 3, lm.depth - 1)


def test_description_makes_the_same_map_again(lm):
    first = CausalMap(lm, prompts(), 1, 3, target_tokens=2, skip_first=True, normalise_target=True)
    again = CausalMap.from_description(lm, first.describe())
    V = directions(2, lm.width)
    assert torch.equal(first.value(V), again.value(V))


def test_half_precision_models_give_single_precision_differences():
    lm = tiny_model("llama", dtype=torch.bfloat16)
    cmap = CausalMap(lm, prompts(), 1, 3)
    exact = CausalMap(tiny_model("llama", dtype=torch.float64), prompts(), 1, 3)
    V = directions(2, lm.width)
    assert cmap.value(V).dtype == torch.float32
    assert (cmap.value(V).double() - exact.value(V)).norm() < 0.05 * exact.value(V).norm()


@pytest.mark.parametrize(
    ("source", "target", "settings", "says"),
    [
        (2, 2, {}, "source < target"),
        (3, 1, {}, "source < target"),
        (0, 99, {}, "target is 99.*expected 0 to"),
        (-99, 2, {}, "source is -99"),
        (1, 3, {"target_tokens": 5}, "prompt 1 has 4 tokens, fewer than the 5"),
        (1, 3, {"target_tokens": 0}, "target_tokens=0"),
    ],
)
def test_layers_and_positions_that_cannot_work_are_refused(lm, source, target, settings, says):
    with pytest.raises(MelboError, match=says):
        CausalMap(lm, prompts(), source, target, **settings)


def test_a_steered_pass_that_overflows_names_the_layer():
    lm = tiny_model("llama", dtype=torch.float32)
    with pytest.raises(
        MelboError, match=r"hidden_states\[2\] of the steered model is not finite at scale 1e\+40"
    ):
        fit(CausalMap(lm, prompts(), 1, 3), Exponential(2, 1e40), progress=False)
