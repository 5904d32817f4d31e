"""Faults of the published code (docs/method.md §9), each with a test that would catch it here."""

import pytest
import torch
from cases import prompts, tiny_model
from toys import directions, planted, recovery, smooth

from melbo import (
    CausalMap,
    Exponential,
    FunctionMap,
    Linear,
    MelboError,
    Prompts,
    Quadratic,
    fit,
    steer,
)
from melbo.evaluation.rank import rank
from melbo.maths.linalg import orthogonalise


def test_fault_1_linear_takes_rows_of_vh_not_columns():
    sigma = torch.tensor([5.0, 3.0, 1.0, 0.5], dtype=torch.float64)
    J = sigma.diag() @ orthogonalise(directions(4, 4), "qr")
    toy = FunctionMap(lambda theta: theta @ J.T, 4, 4, torch.float64)
    v = fit(toy, Linear(1, 1.0), progress=False).features.V
    # a column of Vh does not reach σ₁
    assert (v @ J.T).norm().item() == pytest.approx(5.0)


def test_fault_2_quadratic_sees_curvature_and_not_slope():
    slope, bend = orthogonalise(directions(8, 32), "qr").split(4)
    U = directions(8, 32, 1)

    def fn(theta):
        return 10 * theta @ slope.T @ U[:4] + (theta @ bend.T) ** 2 @ U[4:]

    toy = FunctionMap(fn, 32, 32, torch.float64)
    quadratic = fit(toy, Quadratic(4, 1.0), progress=False).features
    assert recovery(bend, quadratic.V).min() > 0.99
    assert recovery(slope, quadratic.V).max() < 0.1


def test_fault_3_orthogonalising_flips_no_sign():
    V, U = directions(6, 64), directions(6, 64, 1)
    # expm1 pulls far more at +v than at −v
    toy = planted(V, U, torch.expm1)
    for how in ("qr", "polar", "soft"):
        found = fit(toy, Exponential(12, 2.0, orthogonalise=how, max_steps=15), progress=False)
        assert recovery(V, found.features.V, signed=True).min() > 0.99
        assert found.features.alpha.sum() > 0


def test_fault_4_output_directions_belong_to_the_final_input_directions():
    toy = smooth(10, 10)
    features = fit(toy, Exponential(4, 1.5, max_steps=2), progress=False).features
    D = toy.value(1.5 * features.V)
    assert torch.allclose(features.U, D / D.norm(dim=-1, keepdim=True), atol=1e-12)


def target_states(lm, tokens):
    return lm.model(torch.tensor([tokens]), output_hidden_states=True).hidden_states[3][0, -3:]


def test_fault_5_features_act_where_they_were_trained():
    lm = tiny_model("llama")
    some = prompts([6, 9])
    cmap = CausalMap(lm, some, 1, 3)
    features = fit(cmap, Exponential(2, 1.0), progress=False).features
    change = torch.zeros(lm.width, dtype=torch.float64)
    for tokens in some.tokens:
        plain = target_states(lm, tokens)
        with steer(lm, features[0]):
            change += (target_states(lm, tokens) - plain).mean(0) / len(some)
    assert torch.allclose(change, cmap.value(features.V[:1])[0], atol=1e-9)


def test_fault_6_padding_is_neither_attended_to_nor_steered_nor_read():
    lm = tiny_model("llama")
    long, short = prompts([11, 5]).tokens
    V = directions(3, lm.width)
    together = CausalMap(lm, Prompts(("a", "b"), (long, short)), 1, 3, prompt_batch=2)
    alone = [CausalMap(lm, Prompts(("a",), (row,)), 1, 3).value(V) for row in (long, short)]
    assert torch.allclose(together.value(V), (alone[0] + alone[1]) / 2, atol=1e-10)


def test_fault_7_contrast_is_read_from_the_real_logits_of_prompts_not_fitted_on():
    lm = tiny_model("llama")
    settings = {
        "max_new_tokens": 2,
        "num_controls": 2,
        "contrast": ("yes", "no"),
        "by": "contrast",
        "progress": False,
    }
    used, chosen, reported = (
        Prompts.chat(lm, [text])
        for text in ("Tell me how to bake a cake", "dog and sun", "red or blue")
    )
    features = fit(CausalMap(lm, used, 1, 3), Exponential(3, 1.0), progress=False).features
    ranking = rank(lm, features, chosen, reported, **settings)
    yes, no = (lm.tokenizer(w, add_special_tokens=False)["input_ids"][0] for w in ("yes", "no"))
    for r in ranking.features:
        with steer(lm, features[r.index]):
            logits = lm.model(torch.tensor(reported.tokens)).logits[0, -1]
        assert r.held_out.contrast == pytest.approx((logits[yes] - logits[no]).item(), abs=1e-4)
    values = [r.validation.contrast for r in ranking.features if r.validation.flag == "active"]
    assert values == sorted(values, reverse=True)
    for chosen_on, reported_on in ((used, reported), (chosen, used), (chosen, chosen)):
        with pytest.raises(MelboError, match="was used before"):
            rank(lm, features, chosen_on, reported_on, **settings)


def test_fault_8_damping_mixes_unit_vectors():
    # the size of Δ must not change how far a damped step goes
    V, U = directions(6, 24), directions(6, 24, 1)
    damped = Exponential(6, 1.0, beta=0.5, max_steps=3)
    one = fit(planted(V, U, torch.expm1), damped, progress=False).features
    loud = fit(planted(V, 1000 * U, torch.expm1), damped, progress=False).features
    assert torch.allclose(one.V, loud.V, atol=1e-9)


def test_fault_9_only_the_blocks_of_the_slice_run_and_the_model_stays_as_it_was():
    lm = tiny_model("llama")
    before = {k: v.clone() for k, v in lm.model.state_dict().items()}
    cmap = CausalMap(lm, prompts([6]), 1, 3)
    ran = []
    watched = [*lm.blocks, lm.model.model.norm, lm.model.lm_head]

    def note(module, args, out):
        ran.append(watched.index(module))

    handles = [module.register_forward_hook(note) for module in watched]
    # a map sees once that hooks put on after it was made only look on
    cmap.value(directions(1, lm.width))
    ran.clear()
    cmap.value_and_vjp(directions(2, lm.width), lambda d, rows: d)
    for handle in handles:
        handle.remove()
    assert ran == [1, 2]
    assert lm.model.config._attn_implementation == "sdpa"
    assert all(torch.equal(v, before[k]) for k, v in lm.model.state_dict().items())


def test_fault_10_stacked_responses_keep_channels_innermost():
    # the MELBO objective takes norms over channels, prompt by prompt and token by token
    lm = tiny_model("llama")
    some = prompts([6, 9])
    v = directions(1, lm.width)
    stacked = CausalMap(lm, some, 1, 3, concatenate=True).value(v).view(2, 3, lm.width)
    for i, tokens in enumerate(some.tokens):
        mask = torch.ones(1, len(tokens), dtype=torch.bool)
        part = lm.capture(torch.tensor([tokens]), mask, 1, 3)
        change = (part.replay(part.hidden + v) - part.output)[0, -3:]
        assert torch.allclose(stacked[i].norm(dim=-1), change.norm(dim=-1), atol=1e-10)
