"""Maps of edited models: right against whole forward passes, and refused once the edit is gone."""

import pytest
import torch
from cases import FLOAT32_INSIDE, tiny_model
from slow_maps import RAGGED, by_hooks, prompts_of
from toys import directions

from melbo import (
    AdapterMap,
    Add,
    CausalMap,
    Exponential,
    MelboError,
    Random,
    Sara,
    ablate,
    edit,
    fit,
    steer,
)
from melbo.features.prompt_pair import AddPrompt
from melbo.maps.described import map_from_description

pytestmark = pytest.mark.slow

NAMES = ["llama", "gpt2", "gemma2", "mixtral", "opt", "falcon"]
STALE = "are not those with which this map was made"


def edits(lm):
    """An edit on the source block and one on a later block, of every kind."""
    v, w = directions(2, lm.width, 5)
    pair = directions(2, lm.width, 6)
    sara = directions(4, lm.width, 7), directions(4, lm.width, 8)
    return {
        "source": [Add(1, 3 * v)],
        "later": [Add(2, 3 * v)],
        "earlier": [Add(0, 3 * v)],
        "skipping": [Add(1, 3 * v, "all", True), Add(2, 3 * w, "all", True)],
        "last tokens": [Add(1, 3 * v, "all", False, 2), Add(2, 3 * w, "prompt", False, 2)],
        "prompt pair": [AddPrompt(1, pair), AddPrompt(2, pair)],
        "sara before": [Sara(0, *sara, 2.0), Sara(1, *sara, 2.0)],
    }


def assert_values(cmap, lm, V, found, tolerance):
    truth = by_hooks(lm, cmap.prompts, 1, cmap.target, V, "all").mean((1, 2))
    for value in found:
        assert (value - truth).norm() <= tolerance * truth.norm()


def assert_right(cmap, lm, V, tolerance=1e-9, gradients=True):
    found, gradient = cmap.value_and_vjp(V, V)
    assert_values(cmap, lm, V, (cmap.value(V), found), tolerance)
    # routing jumps
    if not gradients:
        return
    # norms compute in single precision whatever the model does
    step = 1e-2 * V
    slope = (cmap.value(V + step) - cmap.value(V - step)) / 2e-2
    assert torch.allclose((slope * V).sum(-1), (gradient * V).sum(-1), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("kind", sorted(edits(tiny_model("llama"))))
@pytest.mark.parametrize("name", NAMES)
def test_a_map_of_a_steered_model_is_that_of_whole_passes(name, kind):
    lm = tiny_model(name)
    V = directions(3, lm.width, 1)
    tolerance = 1e-5 if name in FLOAT32_INSIDE else 1e-8
    with edit(lm, *edits(lm)[kind]):
        cmap = CausalMap(lm, prompts_of(), 1, 3)
        # what hooks know of the last pass is not what the map's prompts are
        lm.model(torch.tensor([[40, 41]]))
        assert_right(cmap, lm, V, tolerance, name != "mixtral")
    with pytest.raises(MelboError, match=STALE):
        cmap.value(V)


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_through_sara_are_refused_and_values_are_right(name):
    lm = tiny_model(name)
    V, sara = directions(3, lm.width, 1), (directions(4, lm.width, 7), directions(4, lm.width, 8))
    tolerance = 1e-5 if name in FLOAT32_INSIDE else 1e-8
    says = rf"block 2 of {name} is under an edit \(SARA\) whose factors .* a source of 2 or later"
    with edit(lm, Sara(1, *sara, 2.0), Sara(2, *sara, 2.0)):
        cmap = CausalMap(lm, prompts_of(), 1, 3)
        assert_values(cmap, lm, V, (cmap.value(V),), tolerance)
        for derivative in (
            lambda: cmap.value_and_vjp(V, V),
            lambda: cmap.value_and_vjp(V, lambda value, rows: value),
            lambda: cmap.vjp(V),
            lambda: cmap.jvp(V),
            lambda: cmap.hvp(V, V),
            lambda: cmap.bilinear(V, V),
            lambda: fit(cmap, Exponential(2, 1.0), progress=False),
        ):
            with pytest.raises(MelboError, match=says) as err:
                derivative()
            assert "\n" not in str(err.value)
        assert torch.isfinite(fit_random(cmap).alpha).all()
        adapters = AdapterMap(lm, prompts_of(), (1, 2), 3)
        with pytest.raises(MelboError, match=says):
            adapters.jvp(adapters.unit(directions(1, adapters.d_source, 1)))
        late = CausalMap(lm, prompts_of(), 2, 3)
        assert torch.isfinite(late.value_and_vjp(V, V)[1]).all()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mixtral"])
def test_forward_hooks_of_people_count_once(name):
    lm = tiny_model(name)
    V = directions(3, lm.width, 1)

    def halve(module, args, out):
        return (out[0] * 0.5, *out[1:]) if isinstance(out, tuple) else out * 0.5

    modules = lm.blocks[0], lm.blocks[1], lm.blocks[1].get_submodule(mlp_of(lm)), lm.blocks[2]
    handles = [module.register_forward_hook(halve) for module in modules]
    cmap = CausalMap(lm, prompts_of(), 1, 3)
    assert_right(cmap, lm, V, 1e-5 if name in FLOAT32_INSIDE else 1e-8)
    handles[2].remove()
    with pytest.raises(MelboError, match=STALE):
        cmap.jvp(V)


def mlp_of(lm):
    return next(n for n, _ in lm.blocks[1].named_children() if "mlp" in n or "moe" in n.lower())


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_a_map_of_ablated_weights_is_right_inside_and_refused_outside(name):
    lm = tiny_model(name)
    V = directions(3, lm.width, 1)
    before = CausalMap(lm, prompts_of(), 1, 3)
    plain = before.value(V)
    with ablate(lm, directions(2, lm.width, 3)):
        inside = CausalMap(lm, prompts_of(), 1, 3)
        assert_right(inside, lm, V, 1e-8, name != "mixtral")
        with pytest.raises(MelboError, match=f"the weights of {name} {STALE}"):
            before.value(V)
    # the weights are back, bit by bit
    assert torch.equal(before.value(V), plain)
    with pytest.raises(MelboError, match=STALE):
        inside.vjp(V)


def change_data(lm):
    # torch counts no new version, as when peft merges an adapter
    next(lm.blocks[0].parameters()).data.mul_(1.1)


def change_one_row(lm):
    lm.blocks[1].mlp.down_proj.weight[7].mul_(3)


def new_parameter(lm):
    old = lm.blocks[1].mlp.down_proj
    old.weight = torch.nn.Parameter(old.weight * 2, requires_grad=False)


def new_module(lm):
    lm.blocks[2].mlp.down_proj = torch.nn.Linear(48, lm.width, bias=False, dtype=torch.float64)


def new_forward(lm):
    old = lm.blocks[2].mlp.forward
    lm.blocks[2].mlp.forward = lambda x: 2 * old(x)


def clamp(lm):
    largest = 1.01 * CausalMap(lm, prompts_of(), 2, 3).slices[0].hidden.abs().max()
    lm.blocks[2].register_forward_pre_hook(lambda b, args: (args[0].clamp(-largest, largest),))


@torch.no_grad()
@pytest.mark.parametrize(
    "change", [change_data, change_one_row, new_parameter, new_module, new_forward, clamp]
)
@pytest.mark.parametrize("kind", [CausalMap, AdapterMap])
def test_whatever_changes_a_model_is_noticed(change, kind):
    lm = tiny_model("llama")
    cmap = kind(lm, prompts_of(), *((1, 3) if kind is CausalMap else ((1, 2), 3)))
    V = cmap.unit(directions(2, cmap.d_source, 1))
    cmap.value(V)
    change(lm)
    with pytest.raises(MelboError, match=STALE):
        cmap.value(V)


@torch.no_grad()
def test_what_does_not_reach_the_map_is_let_pass():
    lm = tiny_model("llama")
    cmap, V = CausalMap(lm, prompts_of(), 1, 3), directions(2, lm.width, 1)
    truth, seen = cmap.value(V), []
    lm.model.get_output_embeddings().weight.mul_(2)
    lm.blocks[2].register_forward_hook(lambda *args: seen.append(1))
    with edit(lm, Add(3, V[0])):
        assert torch.equal(cmap.value(V), truth)
    lm.model(torch.tensor([[5, 6, 7]]), output_hidden_states=True)
    assert torch.equal(cmap.value(V), truth)
    assert seen
    assert "hooked" not in CausalMap(lm, prompts_of(), 1, 3).describe()


def test_a_map_of_a_model_under_an_adapter():
    lm = tiny_model("llama")
    cmap = AdapterMap(lm, prompts_of(), (1, 3), 3)
    adapters = fit_random(cmap)
    V = directions(3, lm.width, 1)
    with steer(lm, adapters[0]):
        assert_right(inside := CausalMap(lm, prompts_of(), 1, 3), lm, V)
        with pytest.raises(MelboError, match=f"the modules of llama {STALE}"):
            cmap.value(adapters.V.double())
    with pytest.raises(MelboError, match=STALE):
        inside.value(V)


def fit_random(cmap):
    return fit(cmap, Random(2, 3.0), progress=False).features


@pytest.mark.parametrize("layer", [1, 2])
def test_hooks_that_cannot_be_replayed_are_refused(layer):
    lm = tiny_model("llama")
    hook = lm.blocks[layer].register_forward_hook(lambda b, args, out: out + torch.rand_like(out))
    with pytest.raises(MelboError, match="do something else when these are replayed"):
        CausalMap(lm, prompts_of(), 1, 3)
    hook.remove()
    rows = len(prompts_of())
    with (
        edit(lm, Add(layer, directions(rows, lm.width, 3))),
        pytest.raises(MelboError, match="outside the `with` block|got 3 vectors for a batch"),
    ):
        CausalMap(lm, prompts_of(), 0, 3, prompt_batch=rows)


def test_features_fitted_under_hooks_say_so():
    lm = tiny_model("llama")
    with edit(lm, Add(2, 3 * directions(1, lm.width, 5)[0])):
        cmap = CausalMap(lm, prompts_of(), 1, 3)
        features = fit(cmap, Exponential(2, 1.0), progress=False).features
        again = map_from_description(lm, features.meta["map"])
        assert torch.equal(again.value(features.V.double()), cmap.value(features.V.double()))
    with pytest.raises(MelboError, match="made with hooks on the blocks of llama"):
        map_from_description(lm, features.meta["map"])


def test_blocks_with_hooks_are_not_compiled():
    lm, ran = tiny_model("llama", torch.float32), []

    class Noted(CausalMap):
        _compiled = staticmethod(lambda *args: ran.append(1))

    with edit(lm, Add(2, 3 * directions(1, lm.width, 5)[0])):
        cmap = Noted(lm, prompts_of(RAGGED[:1]), 1, 3, compile=True)
        V = directions(2, lm.width, 1).float()
        cmap.value_and_vjp(V, V)
    assert not ran
