"""AdapterSet: steering, merging, exporting, and the run folder."""

import json
import re

import peft
import pytest
import torch
from adapters import BAND, NAMES, TARGET, a_map, a_set, logits_with_cache
from cases import TINY, tiny_model

from melbo import (
    CPE,
    AdapterMap,
    AdapterSet,
    Exponential,
    MelboError,
    Prompts,
    fit,
    generate,
    rank,
    steer,
)
from melbo.evaluation.report import report
from melbo.models.weights.low_rank import merged, pairs, part_widths


@pytest.mark.parametrize("name", NAMES)
def test_steering_is_merging_on_prompts_and_on_cached_tokens(name):
    cmap = a_map(name)
    lm, adapters = cmap.lm, a_set(cmap, 3)
    ids, following = torch.tensor([[5, 9, 11, 40]]), torch.tensor([[7]])

    def logits(rows):
        return logits_with_cache(lm, ids.expand(rows, -1), following.expand(rows, -1))

    with steer(lm, adapters, per_row=True, strength=-0.5):
        together = logits(3)
    for i in range(3):
        with steer(lm, adapters[i], strength=-0.5):
            alone = logits(1)[0]
        with adapters[i].merge(lm, strength=-0.5):
            in_weights = logits(1)[0]
        assert torch.allclose(alone, in_weights, atol=1e-4)
        assert torch.allclose(together[i], in_weights, atol=1e-4)
    assert (logits(1)[0] - in_weights).norm() > 1e-2


def test_merging_is_undone_bit_by_bit():
    cmap = a_map("gpt2", torch.float32)
    adapters = a_set(cmap, 1)
    before = {name: p.clone() for name, p in cmap.lm.model.named_parameters()}
    with adapters.merge(cmap.lm):
        changed = [
            name for name, p in cmap.lm.model.named_parameters() if not torch.equal(p, before[name])
        ]
    assert sorted(name.removesuffix(".weight") for name in changed) == sorted(
        site.name for site in adapters.sites
    )
    assert all(torch.equal(p, before[name]) for name, p in cmap.lm.model.named_parameters())


def test_strength_one_adds_a_matrix_of_norm_R_at_every_site():
    cmap = a_map()
    adapters = a_set(cmap, 1, scale=2.5)
    edit = adapters.edit()
    for a, b in pairs(adapters.sites, edit.v, edit.strength):
        assert (b[0].norm() * a[0].norm()).item() == pytest.approx(2.5)


def test_a_fit_is_saved_ranked_generated_and_loaded(tmp_path):
    lm = tiny_model("llama", torch.float32)
    cmap = AdapterMap(lm, Prompts.text(lm, ["Tell me how to bake a cake"]), BAND, TARGET)
    found = fit(cmap, CPE(3, 4.0, max_steps=3), progress=False)
    assert isinstance(found.features, AdapterSet)
    found.features.save(tmp_path / "run")
    adapters = AdapterSet.load(tmp_path / "run", lm)
    assert torch.equal(adapters.V, found.features.V)
    assert adapters.sites == cmap.sites
    say = Prompts.text(lm, ["it is a dog", "she and he"])
    table = generate(
        lm,
        say,
        adapters,
        adapters.random(2, torch.Generator().manual_seed(0)),
        max_new_tokens=5,
        progress=False,
    )
    for c in table:
        if c.feature is None:
            continue
        one = (
            adapters[c.feature]
            if c.kind == "feature"
            else adapters.random(2, torch.Generator().manual_seed(0))[c.feature]
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
    ranking = rank(lm, adapters, say[0], say[1], num_controls=2, max_new_tokens=3, progress=False)
    assert len(ranking.features) == 3
    again = AdapterMap.from_description(lm, adapters.meta["map"])
    effects = again.value(4.0 * adapters.V).norm(dim=-1)
    assert sorted(r.effect for r in ranking.features) == pytest.approx(
        sorted(effects.tolist()), rel=1e-4
    )
    with pytest.raises(MelboError, match="fitted on"):
        AdapterSet.load(tmp_path / "run", tiny_model("gpt2", torch.float32))
    ranking.save(tmp_path / "run")
    page = re.sub(r"\s+", " ", report(tmp_path / "run").read_text())
    assert (
        "melbo learned 3 adapters, each an edit of rank one and norm 4 of the output matrix of "
        "attention in blocks 0 to 1"
    ) in page
    assert "2 random adapters of the same norm" in page


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_peft_loads_what_is_exported(name, tmp_path):
    cmap = a_map(name, torch.float32)
    adapters, lm = a_set(cmap, 2), cmap.lm
    adapters[1].export_peft(lm, tmp_path / "lora", strength=0.5)
    ids = torch.tensor([[5, 9, 11, 40]])
    with adapters[1].merge(lm, strength=0.5), torch.no_grad():
        truth = lm.model(ids).logits
    model = peft.PeftModel.from_pretrained(TINY[name]().to(torch.float32).eval(), tmp_path / "lora")
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, truth, atol=1e-4)
        assert not torch.allclose(lm.model(ids).logits, truth, atol=1e-2)
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["r"] == 1
    with pytest.raises(MelboError, match="already holds"):
        adapters[1].export_peft(lm, tmp_path / "lora")


def test_the_random_control_has_the_same_norm_at_every_site():
    adapters = a_set(a_map(), 2)
    control = adapters.random(5, torch.Generator().manual_seed(0))
    for part in control.V.split(part_widths(adapters.sites), 1):
        assert torch.allclose(
            part.norm(dim=-1),
            torch.full((5,), len(part_widths(adapters.sites)) ** -0.5, dtype=part.dtype),
            atol=1e-6,
        )


def test_what_adapters_do_not_have_is_said():
    cmap = a_map()
    adapters = a_set(cmap, 2)
    with pytest.raises(MelboError, match="use CPE"):
        fit(cmap, Exponential(2, 1.0), progress=False)
    with pytest.raises(MelboError, match="not of rank one"):
        adapters.averaged("mean")
    with pytest.raises(MelboError, match="at all tokens"):
        adapters[0].edit(where="prompt")
    with pytest.raises(MelboError, match="set of 2"), steer(cmap.lm, adapters):
        pass
    with (
        pytest.raises(MelboError, match="expected one"),
        merged(cmap.lm, adapters.edit(torch.arange(2))),
    ):
        pass
    for rows in (3, 4):
        with (
            pytest.raises(MelboError, match=f"2 adapters for a batch of {rows}"),
            steer(cmap.lm, adapters, per_row=True),
        ):
            cmap.lm.model(torch.ones(rows, 2, dtype=torch.long))


def test_an_adapter_and_its_double_negative_are_found_again_as_one():
    cmap = a_map()
    adapters = a_set(cmap, 2)
    widths = part_widths(adapters.sites)
    flipped = torch.cat(
        [-part if i < 2 else part for i, part in enumerate(adapters.V.split(widths, 1))], 1
    )
    assert torch.allclose(cmap.value(flipped), cmap.value(adapters.V))
    assert torch.allclose(
        adapters.replaced(flipped, adapters.U, adapters.alpha).canonical, adapters.canonical
    )
    assert not torch.allclose(flipped, adapters.V)
