import json
import re

import peft
import pytest
import torch
from cases import TINY, prompts, tiny_model
from toys import directions

from melbo import (
    CPE,
    AdapterMap,
    AdapterSet,
    Exponential,
    FunctionMap,
    MelboError,
    Prompts,
    calibrate,
    fit,
    generate,
    rank,
    steer,
)
from melbo.evaluation.report import report
from melbo.models.low_rank import find_sites, merged, pairs, part_widths

NAMES = ("llama", "qwen3", "gemma3", "gpt2", "gptj", "olmo2")
BAND, TARGET = (0, 2), 3


def a_map(name="llama", dtype=torch.float64, matrix="attention", **more):
    lm = tiny_model(name, dtype)
    return AdapterMap(lm, prompts([6, 4, 6]), BAND, TARGET, matrix=matrix, **more)


def some(cmap, k, seed=0):
    """Balanced unit factors."""
    return cmap.unit(
        torch.randn(
            k, cmap.d_source, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        ).to(cmap.dtype)
    )


def a_bank(cmap, k, scale=3.0):
    V = some(cmap, k)
    D = cmap.value(scale * V)
    U = torch.nn.functional.normalize(D, dim=-1)
    return AdapterSet(
        V, U, D.norm(dim=-1), scale, cmap.source, cmap.target, {"map": cmap.describe()}
    )


@pytest.mark.parametrize("matrix", ["attention", "mlp"])
@pytest.mark.parametrize("name", NAMES)
def test_the_map_is_the_change_with_merged_weights(name, matrix):
    cmap = a_map(name, matrix=matrix)
    lm, bank = cmap.lm, a_bank(cmap, 2)

    def read(tokens):
        taken = []
        hook = lm.blocks[TARGET - 1].register_forward_hook(
            lambda m, a, out: taken.append(out[0] if isinstance(out, tuple) else out)
        )
        with torch.no_grad():
            lm.model(torch.tensor([tokens]))
        hook.remove()
        return taken[0][0, -3:]

    for i in range(2):
        with bank[i].merge(lm):
            after = [read(t) for t in cmap.prompts.tokens]
        before = [read(t) for t in cmap.prompts.tokens]
        change = torch.stack([(a - b).mean(0) for a, b in zip(after, before, strict=True)]).mean(0)
        tolerance = (
            1e-5 if name in ("gemma3", "qwen3", "llama", "olmo2") else 1e-8
        )  # norms in float32 whatever the model computes in
        assert torch.allclose(
            cmap.value(3.0 * bank.V[i : i + 1])[0], change, atol=tolerance * change.norm().item()
        )


@pytest.mark.parametrize("name", NAMES)
def test_steering_is_merging_on_prompts_and_on_cached_tokens(name):
    cmap = a_map(name)
    lm, bank = cmap.lm, a_bank(cmap, 3)
    ids, following = torch.tensor([[5, 9, 11, 40]]), torch.tensor([[7]])

    def logits(rows):
        with torch.no_grad():
            first = lm.model(ids.expand(rows, -1), use_cache=True)
            return torch.cat(
                [
                    first.logits,
                    lm.model(
                        following.expand(rows, -1), past_key_values=first.past_key_values
                    ).logits,
                ],
                1,
            )

    with steer(lm, bank, per_row=True, strength=-0.5):
        together = logits(3)
    for i in range(3):
        with steer(lm, bank[i], strength=-0.5):
            alone = logits(1)[0]
        with bank[i].merge(lm, strength=-0.5):
            in_weights = logits(1)[0]
        assert torch.allclose(alone, in_weights, atol=1e-4)
        assert torch.allclose(together[i], in_weights, atol=1e-4)
    assert (logits(1)[0] - in_weights).norm() > 1e-2


def test_merging_is_undone_bit_by_bit():
    cmap = a_map("gpt2", torch.float32)
    bank = a_bank(cmap, 1)
    before = {name: p.clone() for name, p in cmap.lm.model.named_parameters()}
    with bank.merge(cmap.lm):
        changed = [
            name for name, p in cmap.lm.model.named_parameters() if not torch.equal(p, before[name])
        ]
    assert sorted(name.removesuffix(".weight") for name in changed) == sorted(
        site.name for site in bank.sites
    )
    assert all(torch.equal(p, before[name]) for name, p in cmap.lm.model.named_parameters())


def test_strength_one_adds_a_matrix_of_norm_R_at_every_site():
    cmap = a_map()
    bank = a_bank(cmap, 1, scale=2.5)
    edit = bank.edit()
    for a, b in pairs(bank.sites, edit.v, edit.strength):
        assert (b[0].norm() * a[0].norm()).item() == pytest.approx(2.5)


@pytest.mark.parametrize("name", ["gpt2", "gptj"])
def test_the_gradient_is_that_of_dense_autograd(name):
    cmap = a_map(name)
    lm, theta = cmap.lm, 2.0 * some(cmap, 2)
    U = directions(2, lm.width, 1).to(cmap.dtype)
    value, gradient = cmap.value_and_vjp(theta, U)
    for i in range(2):  # W + b aᵀ made whole, through the model's own forward
        point = theta[i].clone().requires_grad_()
        total = torch.zeros(lm.width, dtype=cmap.dtype)
        norm = point.norm()
        weights = {}
        for site, (a, b) in zip(
            cmap.sites,
            zip(*[iter(point.split(part_widths(cmap.sites)))] * 2, strict=True),
            strict=True,
        ):
            added = 2 * len(cmap.sites) / norm * torch.outer(b, a)
            module = lm.model.get_submodule(site.name)
            weights[f"{site.name}.weight"] = module.weight + (
                added if module.weight.shape == added.shape and name != "gpt2" else added.T
            )
        for tokens in cmap.prompts.tokens:
            taken = []
            hook = lm.blocks[TARGET - 1].register_forward_hook(
                lambda m, a, out, taken=taken: taken.append(
                    out[0] if isinstance(out, tuple) else out
                )
            )
            torch.func.functional_call(lm.model, weights, (torch.tensor([tokens]),))
            lm.model(torch.tensor([tokens]))
            hook.remove()
            total = total + (taken[0] - taken[1])[0, -3:].mean(0) / len(cmap.prompts)
        dense = torch.autograd.grad((total * U[i]).sum(), point)[0]
        assert torch.allclose(value[i], total.detach(), atol=1e-8 * value[i].norm().item())
        assert torch.allclose(gradient[i], dense, atol=1e-6 * dense.norm().item())


def test_it_does_not_depend_on_chunks_nor_on_how_prompts_are_batched():
    V = some(a_map(), 5)
    truth = a_map().value(2.0 * V)
    for more in ({"tokens_per_pass": 1}, {"prompt_batch": 1}, {"prompt_batch": 2}):
        assert torch.allclose(a_map(**more).value(2.0 * V), truth, atol=1e-6 * truth.norm().item())


@pytest.mark.parametrize(
    ("name", "matrix", "late"),
    [("llama", "attention", True), ("gptj", "mlp", True), ("falcon", "attention", False)],
)
def test_a_prompt_by_itself_enters_the_first_block_once_for_all_factors_where_blocks_allow_it(
    name, matrix, late
):
    cmap = AdapterMap(tiny_model(name, torch.float64), prompts([6]), BAND, TARGET, matrix=matrix)
    V, U = some(cmap, 3), directions(3, cmap.d_target, 1)
    entered = []
    hook = cmap.lm.blocks[0].register_forward_pre_hook(
        lambda block, args: entered.append(len(args[0]))
    )
    together = cmap.value_and_vjp(2 * V, U)
    hook.remove()
    assert set(entered) == {1 if late else 3}
    cmap._late = False
    for a, b in zip(together, cmap.value_and_vjp(2 * V, U), strict=True):
        assert torch.allclose(a, b, atol=1e-9 * b.norm().item())


def test_jvp_is_the_derivative_along_the_ray():
    cmap = a_map("gpt2")
    V = some(cmap, 3)
    step = 1e-5
    assert torch.allclose(
        cmap.jvp(V), cmap.value(step * V) / step, atol=1e-3 * cmap.jvp(V).norm().item()
    )
    assert torch.allclose(cmap.jvp(2 * V), 2 * cmap.jvp(V))


def test_the_scale_is_calibrated_with_its_curve():
    cmap = a_map("gpt2")
    found = calibrate(cmap, num_directions=6, progress=False)
    V = cmap.probes(6, torch.Generator().manual_seed(0))
    assert found.scale > 0
    assert found.relative is None
    assert len(found.curve) > 4
    linear = cmap.jvp(V)
    ratio = (
        (
            (cmap.value(found.scale * V) - found.scale * linear).norm(dim=-1)
            / (found.scale * linear.norm(dim=-1))
        )
        .square()
        .mean()
        .sqrt()
    )
    assert ratio.item() == pytest.approx(0.5, abs=0.02)


def balanced(k, widths, seed):
    g = torch.Generator().manual_seed(seed)
    rows = torch.cat(
        [
            torch.nn.functional.normalize(
                torch.randn(k, w, generator=g, dtype=torch.float64), dim=-1
            )
            for w in widths
        ],
        1,
    )
    return torch.nn.functional.normalize(rows, dim=-1)


def test_known_factors_of_several_blocks_are_recovered():
    widths = (24, 16, 24, 16, 24, 16)
    V, U = balanced(8, widths, 0), directions(8, 40, 1)
    toy = FunctionMap(
        lambda theta: torch.expm1(theta @ V.T) @ U, sum(widths), 40, torch.float64, parts=widths
    )
    found = fit(toy, CPE(32, 4.0), progress=False).features
    best = (V @ found.V.double().T).max(1).values
    print(f"mean best cosine {best.mean():.4f}")
    assert best.mean() > 0.95
    for part in found.V.split(widths, 1):
        assert torch.allclose(
            part.norm(dim=-1), torch.full((32,), len(widths) ** -0.5, dtype=part.dtype), atol=1e-5
        )


@pytest.mark.parametrize("seed", range(3))
def test_a_planted_edit_of_outsized_effect_is_found(seed):
    """One rank-one edit writes a direction that a matrix downstream amplifies: nothing else comes near its effect."""
    lm = tiny_model("llama", torch.float32)
    planted, reads = torch.nn.functional.normalize(
        torch.randn(2, lm.width, generator=torch.Generator().manual_seed(3)), dim=-1
    )
    with torch.no_grad():  # what the edited matrix writes along `planted` is read out a hundredfold by the MLP of the next block
        mlp = lm.model.model.layers[2].mlp
        mlp.down_proj.weight.mul_(0.1)
        mlp.gate_proj.weight[0] = 60 * planted
        mlp.up_proj.weight[0] = 60 * planted
        mlp.down_proj.weight[:, 0] = 20 * reads
    cmap = AdapterMap(lm, prompts([6, 4, 6]), (1, 2), 3)
    found = fit(cmap, CPE(8, 12.0), seed=seed, progress=False).features
    b = found.V[:, cmap.sites[0].d_in :] * 2**0.5
    print(f"best |cos| of b with the planted direction {(b @ planted).abs().max():.3f}")
    assert (b @ planted).abs().max() > 0.9


def test_a_fit_is_saved_ranked_generated_and_loaded(tmp_path):
    lm = tiny_model("llama", torch.float32)
    cmap = AdapterMap(lm, Prompts.text(lm, ["Tell me how to bake a cake"]), BAND, TARGET)
    found = fit(cmap, CPE(3, 4.0, max_steps=3), progress=False)
    assert isinstance(found.features, AdapterSet)
    found.features.save(tmp_path / "run")
    bank = AdapterSet.load(tmp_path / "run", lm)
    assert torch.equal(bank.V, found.features.V)
    assert bank.sites == cmap.sites
    say = Prompts.text(lm, ["it is a dog", "she and he"])
    table = generate(
        lm,
        say,
        bank,
        bank.random(2, torch.Generator().manual_seed(0)),
        max_new_tokens=5,
        progress=False,
    )
    for c in table:
        if c.feature is None:
            continue
        one = (
            bank[c.feature]
            if c.kind == "feature"
            else bank.random(2, torch.Generator().manual_seed(0))[c.feature]
        )
        with one.merge(lm):
            ids = torch.tensor([say.tokens[c.prompt]])
            out = lm.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=5,
                do_sample=False,
                pad_token_id=0,
            )
        assert tuple(out[0, ids.shape[1] :].tolist()) == c.tokens
    ranking = rank(lm, bank, say[0], say[1], num_controls=2, max_new_tokens=3, progress=False)
    assert len(ranking.features) == 3
    effects = AdapterMap.from_description(lm, bank.meta["map"]).value(4.0 * bank.V).norm(dim=-1)
    assert sorted(r.effect for r in ranking.features) == pytest.approx(
        sorted(effects.tolist()), rel=1e-4
    )
    with pytest.raises(MelboError, match="fitted on"):
        AdapterSet.load(tmp_path / "run", tiny_model("gpt2", torch.float32))
    ranking.save(tmp_path / "run")
    page = re.sub(r"\s+", " ", report(tmp_path / "run").read_text())
    assert (
        "melbo learned 3 adapters, each an edit of rank one and norm 4 of the output matrix of attention in blocks 0 to 1"
        in page
    )
    assert "2 random adapters of the same norm" in page


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_peft_loads_what_is_exported(name, tmp_path):
    cmap = a_map(name, torch.float32)
    bank, lm = a_bank(cmap, 2), cmap.lm
    bank[1].export_peft(lm, tmp_path / "lora", strength=0.5)
    ids = torch.tensor([[5, 9, 11, 40]])
    with bank[1].merge(lm, strength=0.5), torch.no_grad():
        truth = lm.model(ids).logits
    model = peft.PeftModel.from_pretrained(TINY[name]().to(torch.float32).eval(), tmp_path / "lora")
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, truth, atol=1e-4)
        assert not torch.allclose(lm.model(ids).logits, truth, atol=1e-2)
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["r"] == 1
    with pytest.raises(MelboError, match="already holds"):
        bank[1].export_peft(lm, tmp_path / "lora")


def test_the_random_control_has_the_same_norm_at_every_site():
    bank = a_bank(a_map(), 2)
    control = bank.random(5, torch.Generator().manual_seed(0))
    for part in control.V.split(part_widths(bank.sites), 1):
        assert torch.allclose(
            part.norm(dim=-1),
            torch.full((5,), len(part_widths(bank.sites)) ** -0.5, dtype=part.dtype),
            atol=1e-6,
        )


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"band": (1, 1)}, "the band is blocks 1 to 0"),
        ({"band": (-1, 2)}, "the band is blocks -1 to 1"),
        ({"band": (2, 4), "target": 3}, "expected the band before it"),
        ({"band": (3, 5), "target": 4}, "expected the band before it"),
        ({"matrix": "head"}, "expected 'attention' or 'mlp'"),
    ],
)
def test_maps_that_cannot_be_made(more, says):
    lm = tiny_model("llama")
    with pytest.raises(MelboError, match=says):
        AdapterMap(lm, prompts([6]), **{"band": BAND, "target": TARGET, **more})


def test_a_mixture_has_no_single_mlp_matrix():
    with pytest.raises(MelboError, match="no single matrix"):
        find_sites(tiny_model("mixtral", torch.float32), (0, 1), "mlp")


def test_what_adapters_do_not_have_is_said():
    cmap = a_map()
    bank = a_bank(cmap, 2)
    with pytest.raises(MelboError, match="use CPE"):
        fit(cmap, Exponential(2, 1.0), progress=False)
    with pytest.raises(MelboError, match="not of rank one"):
        bank.merged("mean")
    with pytest.raises(MelboError, match="at all tokens"):
        bank[0].edit(where="prompt")
    with pytest.raises(MelboError, match="set of 2"), steer(cmap.lm, bank):
        pass
    with (
        pytest.raises(MelboError, match="expected one"),
        merged(cmap.lm, bank.edit(torch.arange(2))),
    ):
        pass
    for rows in (3, 4):
        with (
            pytest.raises(MelboError, match=f"2 adapters for a batch of {rows}"),
            steer(cmap.lm, bank, per_row=True),
        ):
            cmap.lm.model(torch.ones(rows, 2, dtype=torch.long))


def test_an_adapter_and_its_double_negative_are_found_again_as_one():
    cmap = a_map()
    bank = a_bank(cmap, 2)
    widths = part_widths(bank.sites)
    flipped = torch.cat(
        [-part if i < 2 else part for i, part in enumerate(bank.V.split(widths, 1))], 1
    )
    assert torch.allclose(cmap.value(flipped), cmap.value(bank.V))
    assert torch.allclose(bank.replaced(flipped, bank.U, bank.alpha).canonical, bank.canonical)
    assert not torch.allclose(flipped, bank.V)


def test_a_band_that_fits_is_chosen_whatever_the_target():
    lm = tiny_model("llama")
    for target in (1, 2, 3, 4):
        band = AdapterMap(lm, prompts([6]), target=target).band
        assert 0 <= band[0] < band[1] <= target
