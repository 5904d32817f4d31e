"""CausalMap that reads what attention adds to the stream in its last block."""

import dense
import pytest
import torch
from cases import FLOAT32_INSIDE, tiny_model
from slow_maps import EQUAL, RAGGED, assert_same, by_hooks, oracles, prompts_of, slow_twin
from toys import directions

from melbo import CausalMap, Exponential, MelboError, fit
from melbo.models.replay import call_block


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama", dtype=torch.float64)


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
    for texts in (prompts_of(), EQUAL):
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
def test_oracles_of_what_attention_adds_the_short_way_and_the_long_way(name, positions):
    args, settings = (
        (tiny_model(name), EQUAL, 1, 3),
        {"prompt_batch": 2, "tokens_per_pass": 99, "positions": positions, "read": "attention"},
    )
    fast = CausalMap(*args, **settings)
    short = oracles(fast, name)
    assert fast._shares_zero
    tolerance = 1e-6 if name in FLOAT32_INSIDE else 1e-9
    for path in ("tail", "shared"):
        assert_same(short, oracles(slow_twin(*args, **{path: True}, **settings), name), tolerance)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "gptj", "mixtral"])
def test_slopes_of_what_attention_adds_are_its_derivatives(name):
    cmap = CausalMap(tiny_model(name), prompts_of(), 1, 2, read="attention")
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
    # one prompt takes the last block's tail, the other the whole block
    texts = prompts_of((EQUAL.tokens[0], RAGGED[1]))
    cmap = CausalMap(tiny_model("gemma3"), texts, 1, 2, read="attention")
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
        CausalMap(lm, prompts_of(), 1, 3, read="attention", prompt_batch=n, **settings)
        for n in (1, 3)
    )
    assert_same(oracles(together, "llama"), oracles(alone, "llama"), 1e-9)


def test_what_attention_adds_is_normalised_to_its_own_mean_norm(lm):
    normal = CausalMap(lm, EQUAL, 1, 3, read="attention", normalise_target=True)
    v = directions(1, lm.width)
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
    # the map sees once that the hooks only look on
    cmap.value(V)
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


def test_the_block_whose_attention_is_read_is_never_compiled():
    lm, seen = tiny_model("llama", torch.float32), []

    def note(block, *args):
        seen.append(list(lm.blocks).index(block))
        return call_block(block, *args)

    class Noted(CausalMap):
        _compiled = staticmethod(note)

    V = directions(2, lm.width)
    for texts in (EQUAL, prompts_of()):
        seen.clear()
        cmap = Noted(lm, texts, 0, 3, read="attention", compile=True, prompt_batch=3)
        cmap.value_and_vjp(V, V)
        assert set(seen) == {0, 1}


def test_half_precision_reads_attention_in_single_precision():
    V = directions(2, 32)
    cmap, exact = (
        CausalMap(tiny_model("llama", dtype=d), prompts_of(), 1, 3, read="attention")
        for d in (torch.bfloat16, torch.float64)
    )
    assert cmap.value(V).dtype == torch.float32
    assert (cmap.value(V).double() - exact.value(V)).norm() < 0.05 * exact.value(V).norm()


@pytest.mark.parametrize("positions", ["all", "target"])
def test_features_of_what_attention_adds_are_fitted(lm, positions):
    cmap = CausalMap(lm, prompts_of(), 1, 3, read="attention", positions=positions)
    assert fit(cmap, Exponential(2, 1.0), progress=False).stats["explained"] > 0


def test_what_is_read_is_described_and_what_cannot_be_is_refused(lm):
    first = CausalMap(lm, prompts_of(), 1, 3, read="attention")
    saved = first.describe()
    V = directions(2, lm.width)
    assert saved["read"] == "attention"
    assert torch.equal(CausalMap.from_description(lm, saved).value(V), first.value(V))
    del saved["read"]  # as written before there was a choice
    assert torch.equal(
        CausalMap.from_description(lm, saved).value(V), CausalMap(lm, prompts_of(), 1, 3).value(V)
    )
    for wrong in ("residual", "mlp", None):
        with pytest.raises(
            MelboError, match=f"read is {wrong!r}: expected 'stream' or 'attention'"
        ):
            CausalMap(lm, prompts_of(), 1, 3, read=wrong)
    mute = tiny_model("llama")
    mute.blocks[2].self_attn.v_proj.weight.zero_()
    CausalMap(mute, prompts_of(), 1, 2, read="attention")
    with pytest.raises(
        MelboError, match="block 2 of llama writes nothing that depends on other tokens"
    ):
        CausalMap(mute, prompts_of(), 1, 3, read="attention")
    cmap = CausalMap(tiny_model("gpt2", torch.float32), prompts_of(), 1, 2, read="attention")
    says = "what attention adds to hidden_states.2. of the steered model is not finite"
    with pytest.raises(MelboError, match=f"{says} at scale 1e.40"):
        fit(cmap, Exponential(2, 1e40), progress=False)
