"""CausalMap: its definition, and its derivatives against dense ones."""

import dense
import pytest
import torch
from cases import TINY, tiny_model
from slow_maps import NO_FORWARD_MODE, RAGGED, prompts_of
from toys import directions

from melbo import CausalMap, Exponential, MelboError, fit
from melbo.maps.jacobian import Jacobian


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama", dtype=torch.float64)


@pytest.fixture(scope="module")
def cmap(lm):
    return CausalMap(lm, prompts_of(), 1, 3)


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
            steered = lm.model(torch.tensor([tokens]), output_hidden_states=True).hidden_states[3]
            handle.remove()
            expected[i] += (steered[0] - plain)[-3:].mean(0) / len(RAGGED)
    assert torch.allclose(cmap.value(theta), expected, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [
        ("gpt2", torch.float64, 1e-8),
        # its norms compute in single precision whatever the model does
        ("llama", torch.float64, 1e-6),
        ("llama", torch.float32, 1e-4),
        ("gemma2", torch.float32, 1e-4),
    ],
)
def test_oracles_through_a_real_slice_equal_dense_derivatives(name, dtype, tolerance):
    short = prompts_of((RAGGED[0][:5], RAGGED[1]))
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


@pytest.mark.parametrize("name", sorted(NO_FORWARD_MODE & TINY.keys()))
def test_architectures_without_forward_mode_say_so_and_keep_the_first_order(name):
    cmap = CausalMap(tiny_model(name), prompts_of(RAGGED[:1]), 1, 2)
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
    cmap = CausalMap(tiny_model(name), prompts_of(RAGGED[:1]), 1, 2)
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


def test_mean_over_prompts_is_the_mean_of_the_prompts_maps(lm, cmap):
    V = directions(2, lm.width)
    alone = [CausalMap(lm, prompts_of((row,)), 1, 3).value(V) for row in RAGGED]
    assert torch.allclose(cmap.value(V), torch.stack(alone).mean(0), atol=1e-10)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_concatenate_stacks_prompts_and_positions(lm, cmap, batch):
    stacked = CausalMap(lm, prompts_of(), 1, 3, concatenate=True, prompt_batch=batch)
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
        CausalMap(lm, prompts_of(), 1, 3),
        CausalMap(lm, prompts_of(), 1, 3, normalise_target=True),
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
    skipping = CausalMap(lm, prompts_of(), 1, 3, skip_first=True, prompt_batch=3)
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
    one = CausalMap(lm, prompts_of(RAGGED[:1]), 1, 3)
    assert one.source_norm == pytest.approx(
        one.slices[0].hidden[0, 1:].norm(dim=-1).median().item()
    )


def test_negative_layers_count_from_the_end(lm):
    cmap = CausalMap(lm, prompts_of(), -4, -2)
    assert (cmap.source, cmap.target) == (lm.depth - 3, lm.depth - 1)


def test_description_makes_the_same_map_again(lm):
    first = CausalMap(
        lm, prompts_of(), 1, 3, target_tokens=2, skip_first=True, normalise_target=True
    )
    again = CausalMap.from_description(lm, first.describe())
    V = directions(2, lm.width)
    assert torch.equal(first.value(V), again.value(V))


def test_half_precision_models_give_single_precision_differences():
    lm = tiny_model("llama", dtype=torch.bfloat16)
    cmap = CausalMap(lm, prompts_of(), 1, 3)
    exact = CausalMap(tiny_model("llama", dtype=torch.float64), prompts_of(), 1, 3)
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
        (1, 3, {"target_tokens": 0}, "target_tokens is 0"),
    ],
)
def test_layers_and_positions_that_cannot_work_are_refused(lm, source, target, settings, says):
    with pytest.raises(MelboError, match=says):
        CausalMap(lm, prompts_of(), source, target, **settings)


def test_a_steered_pass_that_overflows_names_the_layer():
    lm = tiny_model("llama", dtype=torch.float32)
    with pytest.raises(
        MelboError, match=r"hidden_states\[2\] of the steered model is not finite at scale 1e\+40"
    ):
        fit(CausalMap(lm, prompts_of(), 1, 3), Exponential(2, 1e40), progress=False)
