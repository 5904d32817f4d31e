"""Sets of features are joined where they steer alike, and refused elsewhere."""

from dataclasses import replace

import pytest
import torch
from cases import prompts, tiny_model
from toys import directions

from melbo import AdapterMap, CausalMap, FeatureSet, MelboError, Random, fit, generate
from melbo.features.steerable import Mixed


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama", torch.float32)


def features(lm, scale=2.0, source=1, target=3, **more):
    cmap = CausalMap(lm, prompts([5]), source, target, **more)
    return fit(cmap, Random(2, scale), progress=False).features


def adapters(lm, band=(0, 1), **more):
    return fit(AdapterMap(lm, prompts([5]), band, 3, **more), Random(2, 2.0)).features


def test_sets_of_one_kind_are_joined(lm):
    one, two = features(lm), features(lm)
    both = one.join(two)
    assert torch.equal(both.V, torch.cat([one.V, two.V]))
    random = one.random(3, torch.Generator().manual_seed(1))
    assert len(both.join(random)) == 7
    # a control made by hand says nothing of its model
    V = directions(2, lm.width).float()
    bare = FeatureSet(V, V, torch.zeros(2), 2.0, 1, 3)
    assert len(one.join(bare)) == 4
    with pytest.raises(MelboError, match="model None and"):
        bare.join(one)
    assert len(adapters(lm).join(adapters(lm))) == 4


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"scale": 50.0, "source": 2}, "scale 2 and 50; source 1 and 2"),
        ({"scale": 2.001}, "scale 2 and 2.001"),
        ({"target": 4}, "target 3 and 4"),
        ({"skip_first": True}, "skip_first False and True"),
        ({"positions": "target"}, "last tokens all and 3"),
        ({"positions": "target", "target_tokens": 1}, "last tokens all and 1"),
        ({"concatenate": True}, "width"),
    ],
)
def test_sets_that_steer_in_other_ways_are_refused(lm, more, says):
    one, two = features(lm), features(lm, **more)
    with pytest.raises(MelboError, match=says):
        one.join(two)
    with pytest.raises(MelboError, match=says):
        generate(lm, prompts([5]), one, two, max_new_tokens=2, progress=False)
    # together they are replied with all the same
    mixed = generate(lm, prompts([5]), Mixed([one, two]), max_new_tokens=2, progress=False)
    alone = generate(lm, prompts([5]), two, max_new_tokens=2, progress=False)
    for i in range(2):
        assert [c.text for c in mixed.of("feature", 2 + i)] == [
            c.text for c in alone.of("feature", i)
        ]


def test_sets_of_other_models_and_matrices_are_refused(lm):
    other = features(tiny_model("llama_tied", torch.float32))
    with pytest.raises(MelboError, match="model"):
        features(lm).join(other)
    with pytest.raises(MelboError, match="kind features and adapters"):
        features(lm).join(adapters(lm))
    with pytest.raises(MelboError, match="matrices"):
        adapters(lm).join(adapters(lm, matrix="mlp"))
    with pytest.raises(MelboError, match="source 0 and 1"):
        adapters(lm).join(adapters(lm, band=(1, 2)))
    with pytest.raises(MelboError, match="scale 2 and 3"):
        adapters(lm).join(replace(adapters(lm), scale=3.0))
