import json

import pytest
import torch
from cases import tiny_model

from melbo import (
    CPE,
    AdapterMap,
    CausalMap,
    Exponential,
    FeatureSet,
    Linear,
    MelboError,
    Prompts,
    Random,
    calibrate,
    edit,
    fit,
    generate,
    steer,
)
from melbo.discovery.controls import control
from melbo.discovery.recipes import RECIPES, FeatureSearch
from melbo.evaluation.compare import USUAL, compare
from melbo.evaluation.comparison import table
from melbo.evaluation.scores import Judged, novelty
from melbo.features.steerable import Mixed
from melbo.maths.transcoder import fit_strengths
from melbo.models.text.built_in import REFERENCE

TIMES = (0.5, 1.0)


@pytest.fixture(scope="module")
def world():
    lm = tiny_model("llama", torch.float32)
    cmap = CausalMap(
        lm, Prompts.text(lm, ["Tell me how to bake a cake", "she and he ?"]), 1, 3, target_tokens=2
    )
    return lm, cmap, Prompts.text(lm, ["it is a red dog", "what should you do"])


@pytest.fixture(scope="module")
def comparison(world):
    _, cmap, held_out = world
    return compare(
        cmap,
        held_out,
        3.0,
        num_factors=3,
        times=TIMES,
        seeds=2,
        steps=3,
        contrast=("yes", "no"),
        max_new_tokens=4,
        progress=False,
    )


def test_there_is_a_row_for_each_recipe_norm_sign_and_seed(comparison):
    cases = [(r.recipe, r.times, r.sign, r.seed) for r in comparison.rows]
    seeds = {name: (0, 1) if RECIPES[name].seeded else (0,) for name in USUAL}
    assert sorted(cases) == sorted(
        (w, x, s, seed) for w in USUAL for x in TIMES for s in signs(w) for seed in seeds[w]
    )
    assert (
        len({(r.recipe, r.times, r.sign) for r in comparison.summary})
        == len(comparison.summary)
        == 4 * 4 + 3 * 2
    )


def signs(recipe):
    return (1, -1) if RECIPES[recipe].method is not None else (1,)


def test_measures_are_those_of_the_directions(world, comparison):
    """The row of one recipe, computed the slow way from its own fit."""
    lm, cmap, held_out = world
    features = fit(cmap, Exponential(3, 3.0), seed=1, progress=False).features
    row = next(
        r
        for r in comparison.rows
        if (r.recipe, r.times, r.sign, r.seed) == ("exponential", 1.0, 1, 1)
    )
    D = cmap.value(3.0 * features.V)
    assert row.effect == pytest.approx(D.norm(dim=-1).mean().item(), rel=1e-4)
    explained = fit_strengths(
        features.V, torch.nn.functional.normalize(D), D.norm(dim=-1), "exponential"
    ).explained
    assert row.explained == pytest.approx(explained, rel=1e-3)
    stacked = CausalMap(lm, cmap.prompts, 1, 3, target_tokens=2, concatenate=True).value(
        3.0 * features.V
    )
    assert row.spread_effect == pytest.approx(
        (stacked.norm(dim=-1) / 2).mean().item(), rel=1e-4
    )  # two prompts, two tokens
    said = {(c.prompt, c.text) for c in comparison.completions if c.kind == "feature"}
    own = generate(lm, held_out, features, max_new_tokens=4, progress=False)
    assert {(c.prompt, c.text) for c in own if c.kind == "feature"} <= said


def test_the_other_sign_is_the_other_push(world, comparison):
    _, cmap, _ = world
    V = fit(cmap, Linear(3, 3.0), progress=False).features.V
    row = next(r for r in comparison.rows if (r.recipe, r.times, r.sign) == ("linear", 0.5, -1))
    assert row.effect == pytest.approx(cmap.value(-1.5 * V).norm(dim=-1).mean().item(), rel=1e-4)


@pytest.fixture(scope="module")
def both(world):
    """Directions and adapters in one comparison, named in no particular order."""
    _, cmap, held_out = world
    recipes = ("adapters", "random", "cpe")
    return compare(
        cmap,
        held_out,
        3.0,
        recipes=recipes,
        num_factors=2,
        times=TIMES,
        seeds=2,
        max_new_tokens=4,
        progress=False,
    )


def test_adapters_are_measured_as_directions_are(world, both):
    lm, cmap, held_out = world
    assert {r.recipe for r in both.summary} == {"random", "cpe", "adapters"}
    edits = AdapterMap(lm, cmap.prompts, target=3, target_tokens=2)
    R = both.settings["scales"]["cpe"]
    assert calibrate(edits, progress=False).scale == pytest.approx(R, rel=1e-4)
    features = fit(edits, CPE(2, 0.5 * R, max_steps=20), seed=1, progress=False).features
    for sign in (1, -1):
        row = next(
            r for r in both.rows if (r.recipe, r.times, r.sign, r.seed) == ("cpe", 0.5, sign, 1)
        )
        effects = []
        for one in features:
            with one.merge(lm, strength=sign):  # in the weights themselves
                after = CausalMap(lm, cmap.prompts, 1, 3, target_tokens=2)
                change = [
                    a.output[:, -2:] - b.output[:, -2:]
                    for a, b in zip(after.slices, cmap.slices, strict=True)
                ]
                effects.append(torch.cat([c.mean(1) for c in change]).mean(0).norm().item())
        assert row.effect == pytest.approx(sum(effects) / 2, rel=1e-3)
    said = {(c.prompt, c.text) for c in both.completions if c.kind == "feature"}
    own = generate(lm, held_out, features, strength=-1.0, max_new_tokens=4, progress=False)
    assert {(c.prompt, c.text) for c in own if c.kind == "feature"} <= said


def test_features_of_two_kinds_steer_side_by_side_as_each_alone(world):
    lm, cmap, held_out = world
    vectors = fit(cmap, Exponential(2, 9.0), progress=False).features
    edits = fit(
        AdapterMap(lm, cmap.prompts, target=3, target_tokens=2),
        CPE(2, 9.0, max_steps=2),
        progress=False,
    ).features
    mixed = Mixed([vectors, edits])
    ids = torch.tensor([held_out.tokens[0]])
    rows, strengths = torch.tensor([3, 0, 1, 2]), torch.tensor([1.0, 0.5, -1.0, 2.0])
    with edit(lm, mixed.edit(rows, strengths)), torch.no_grad():
        together = lm.model(ids.expand(4, -1)).logits
    alone = [vectors[0], vectors[1], edits[0], edits[1]]
    for i, strength, logits in zip(rows.tolist(), strengths.tolist(), together, strict=True):
        for one in (alone[i], mixed[i]):
            with steer(lm, one, strength=strength), torch.no_grad():
                assert torch.allclose(lm.model(ids).logits[0], logits, atol=1e-4)
    assert len(mixed[1:3]) == 2


def test_what_does_not_depend_on_the_norm_is_found_once(comparison):
    cost = {
        name: {r.seconds for r in comparison.rows if r.recipe == name and r.seed == 0}
        for name in ("linear", "melbo")
    }
    assert len(cost["linear"]) == 1
    assert len(cost["melbo"]) == len(TIMES)


def test_passes_are_counted(world):
    _, cmap, _ = world
    before = cmap.passes
    fit(cmap, Exponential(4, 3.0, max_steps=2, tol=0.0, start="backward"), progress=False)
    start, sweep, end = 1, 2, 1  # a gradient, a response with its gradient, a response
    assert cmap.passes - before == 4 * (start + 2 * sweep + end)


def test_controls_cost_nothing_and_shares_add_up(comparison):
    for row in comparison.rows:
        assert row.active + row.inert + row.broken == pytest.approx(1)
        assert (row.passes == 0) == (RECIPES[row.recipe].method is None)
        assert 0 <= row.distinct <= 3.0001


def test_summary_is_mean_and_deviation_over_seeds(comparison):
    line = next(r for r in comparison.summary if (r.recipe, r.times, r.sign) == ("random", 1.0, 1))
    values = [
        r.effect for r in comparison.rows if (r.recipe, r.times, r.sign) == ("random", 1.0, 1)
    ]
    assert line.measures["effect"] == pytest.approx(
        [sum(values) / 2, abs(values[0] - values[1]) / 2**0.5]
    )
    assert next(r for r in comparison.summary if r.recipe == "linear").measures["effect"][1] is None


def test_it_is_saved_as_json_table_picture_and_completions(comparison, tmp_path):
    comparison.save(tmp_path / "new")
    saved = json.loads((tmp_path / "new" / "compare.json").read_text())
    assert saved["rows"] == [row.describe() for row in comparison.rows]
    assert (tmp_path / "new" / "compare.md").read_text() == table(comparison.summary)
    assert len((tmp_path / "new" / "completions.jsonl").read_text().splitlines()) == len(
        comparison.completions
    )
    assert (tmp_path / "new" / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_covariance_matched_directions_have_the_covariance_of_activations(world):
    lm, cmap, _ = world
    ordinary = Prompts.text(lm, REFERENCE)
    streams = [
        lm.capture(torch.tensor([t]), torch.ones(1, len(t), dtype=torch.bool), 1, 2).hidden[0][1:]
        for t in ordinary.tokens
    ]
    every = torch.cat(streams)
    leading = torch.linalg.svd(every - every.mean(0), full_matrices=False)[2][:2]
    V = control(lm, cmap.prompts, 1, "covariance", 400, torch.Generator().manual_seed(0))
    plain = control(lm, cmap.prompts, 1, "random", 400, torch.Generator().manual_seed(0))
    assert torch.allclose(V.norm(dim=-1), torch.ones(400), atol=1e-5)
    drawn = torch.distributions.MultivariateNormal(
        torch.zeros(32), torch.cov(every.T) + 1e-6 * torch.eye(32)
    ).sample((4000,))
    share = (
        (torch.nn.functional.normalize(drawn, dim=-1) @ leading.T).square().sum(-1).mean().item()
    )
    assert (V @ leading.T).square().sum(-1).mean().item() == pytest.approx(share, abs=0.05)
    assert (plain @ leading.T).square().sum(-1).mean().item() == pytest.approx(2 / 32, abs=0.02)


def test_unrelated_directions_are_differences_of_last_activations(world):
    lm, cmap, _ = world
    last = torch.stack(
        [
            lm.capture(torch.tensor([t]), torch.ones(1, len(t), dtype=torch.bool), 1, 2).hidden[0][
                -1
            ]
            for t in Prompts.text(lm, REFERENCE).tokens
        ]
    )
    differences = torch.nn.functional.normalize((last[:, None] - last[None]).flatten(0, 1), dim=-1)
    V = control(lm, cmap.prompts, 1, "unrelated", 5, torch.Generator().manual_seed(0))
    assert ((V @ differences.T).max(1).values > 0.9999).all()


def test_columns_are_what_neurons_write(world):
    lm, cmap, _ = world
    V = control(lm, cmap.prompts, 1, "columns", 20, torch.Generator().manual_seed(0))
    cos = (
        V
        @ torch.nn.functional.normalize(
            lm.model.model.layers[0].mlp.down_proj.weight.detach().T, dim=-1
        ).T
    )
    best = cos.abs().max(1)
    assert torch.allclose(best.values, torch.ones(20), atol=1e-5)
    assert len(set(best.indices.tolist())) == 20  # no neuron twice
    assert {True, False} == set(
        (cos.gather(1, best.indices[:, None]) > 0).flatten().tolist()
    )  # either sign
    with pytest.raises(MelboError, match="choose a later source"):
        control(lm, cmap.prompts, 0, "columns", 2, torch.Generator())
    with pytest.raises(MelboError, match="ask for as many at most"):
        control(lm, cmap.prompts, 1, "columns", 100_000, torch.Generator())


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("gpt2", lambda model: model.transformer.h[0].mlp.c_proj.weight),
        (
            "mixtral",
            lambda model: model.model.layers[0].mlp.experts.down_proj.transpose(1, 2).flatten(0, 1),
        ),
        (
            "gemma2",
            lambda model: (
                model.model.layers[0].mlp.down_proj.weight.T
                * (1 + model.model.layers[0].post_feedforward_layernorm.weight)
            ),
        ),
    ],
)
def test_columns_are_of_experts_too_and_come_out_of_the_norm_behind_them(name, written):
    lm = tiny_model(name, torch.float32)
    with torch.no_grad():
        for p in lm.model.parameters():  # norms that do something
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    rows = torch.nn.functional.normalize(written(lm.model).detach(), dim=-1)
    V = control(
        lm,
        Prompts.text(lm, ["it is a red dog"]),
        1,
        "columns",
        len(rows),
        torch.Generator().manual_seed(0),
    )
    cosines = (V @ rows.T).abs()
    assert torch.allclose(cosines.max(0).values, torch.ones(len(rows)), atol=1e-4)


def judged(lm, prompts, features):
    said = generate(lm, prompts, features, max_new_tokens=4, progress=False)
    return Judged(lm, prompts, said, progress=False), said


def test_distinct_counts_what_is_said_and_not_who_says_it(world):
    lm, cmap, held_out = world
    features = fit(cmap, Random(3, 9.0), progress=False).features
    copies = FeatureSet(features.V[[0, 0, 0]], features.U, features.alpha, 9.0, 1, 3, features.meta)
    same, _ = judged(lm, held_out, copies)
    assert same.distinct([0, 1, 2], [0, 1]) == pytest.approx(1)
    assert same.distinct([], [0]) == 0
    several, said = judged(lm, held_out, features)
    texts = [[c.text for c in said.of("feature", i)] for i in range(3)]
    assert several.distinct([0, 1, 2], [0, 1]) <= len({tuple(t) for t in texts}) + 1e-6
    assert several.scores("feature", 1, [0, 1]).novelty == pytest.approx(
        sum(n for n, c in zip(novelty(said), said, strict=True) if c.feature == 1) / 2
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"recipes": ("linear", "best")}, "no recipe best"),
        ({"recipes": ()}, "no recipe given"),
        ({"times": ()}, "one positive norm or more"),
        ({"times": (0.0,)}, "one positive norm or more"),
        ({"seeds": 0}, "seeds=0"),
        ({"contrast": ("yes", "yes")}, "begin with the same token"),
    ],
)
def test_what_makes_no_sense_is_refused(world, options, says):
    _, cmap, held_out = world
    with pytest.raises(MelboError, match=says):
        compare(cmap, held_out, 1.0, **options, progress=False)


def test_prompts_of_the_map_and_concatenated_maps_are_refused(world):
    lm, cmap, _ = world
    with pytest.raises(MelboError, match="one of the map's"):
        compare(cmap, cmap.prompts[1], 1.0, progress=False)
    with pytest.raises(MelboError, match="concatenated"):
        compare(
            CausalMap(lm, cmap.prompts, 1, 3, target_tokens=2, concatenate=True),
            cmap.prompts,
            1.0,
            progress=False,
        )


def test_a_recipe_is_not_looked_for_in_the_other_kind_of_map(world):
    lm, cmap, held_out = world
    search = FeatureSearch(cmap, 1.0)
    for recipe in ("cpe", "adapters"):
        with pytest.raises(MelboError, match="finds adapters, the map is a CausalMap"):
            search.find(recipe, 2, 1.0)
    with pytest.raises(MelboError, match="expected an even number, got 3"):
        search.candidates("linear", 3)
    with pytest.raises(MelboError, match="no control 'best'"):
        control(lm, cmap.prompts, 1, "best", 2, torch.Generator())
    other = CausalMap(lm, cmap.prompts, 1, 3, target_tokens=2, skip_first=True)
    with pytest.raises(MelboError, match="leave read, positions and skip_first out"):
        compare(other, held_out, 1.0, recipes=("cpe",), progress=False)
