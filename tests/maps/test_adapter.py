"""AdapterMap: its definition, its derivatives, and what fits on it find."""

import pytest
import torch
from adapters import BAND, NAMES, TARGET, a_map, a_set, some
from cases import prompts, tiny_model
from toys import directions

from melbo import CPE, AdapterMap, FunctionMap, MelboError, calibrate, fit
from melbo.models.weights.low_rank import find_sites, part_widths


@pytest.mark.parametrize("matrix", ["attention", "mlp"])
@pytest.mark.parametrize("name", NAMES)
def test_the_map_is_the_change_with_merged_weights(name, matrix):
    cmap = a_map(name, matrix=matrix)
    lm, adapters = cmap.lm, a_set(cmap, 2)

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
        with adapters[i].merge(lm):
            after = [read(t) for t in cmap.prompts.tokens]
        before = [read(t) for t in cmap.prompts.tokens]
        change = torch.stack([(a - b).mean(0) for a, b in zip(after, before, strict=True)]).mean(0)
        # norms in float32 whatever the model computes in
        tolerance = 1e-5 if name in ("gemma3", "qwen3", "llama", "olmo2") else 1e-8
        value = cmap.value(3.0 * adapters.V[i : i + 1])[0]
        assert torch.allclose(value, change, atol=tolerance * change.norm().item())


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
    # the map sees once that the hook only looks on
    cmap.value(V)
    entered.clear()
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
    rest = cmap.value(found.scale * V) - found.scale * linear
    ratios = rest.norm(dim=-1) / (found.scale * linear.norm(dim=-1))
    assert ratios.square().mean().sqrt().item() == pytest.approx(0.5, abs=0.02)


def balanced(k, widths, seed):
    g = torch.Generator().manual_seed(seed)
    parts = [torch.randn(k, w, generator=g, dtype=torch.float64) for w in widths]
    rows = torch.cat([torch.nn.functional.normalize(part, dim=-1) for part in parts], 1)
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
    """One rank-one edit writes a direction that a matrix downstream amplifies a hundredfold.

    No other edit comes near its effect.
    """
    lm = tiny_model("llama", torch.float32)
    planted, reads = torch.nn.functional.normalize(
        torch.randn(2, lm.width, generator=torch.Generator().manual_seed(3)), dim=-1
    )
    with torch.no_grad():
        # the MLP of the next block amplifies what the edited matrix writes along `planted`
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


def test_a_band_that_fits_is_chosen_whatever_the_target():
    lm = tiny_model("llama")
    for target in (1, 2, 3, 4):
        band = AdapterMap(lm, prompts([6]), target=target).band
        assert 0 <= band[0] < band[1] <= target
