"""Layers and scale where Python is given none: those of the command line."""

import pytest
import torch
from cases import tiny_model
from toys import smooth

from melbo import (
    AdapterMap,
    AdapterSet,
    CausalMap,
    Exponential,
    Linear,
    MelboError,
    Prompts,
    Random,
    calibrate,
    fit,
    fit_seeds,
)
from melbo.cli.options import default_layers


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def prompts(lm):
    return Prompts.chat(lm, ["Tell me how to bake a cake"])


def test_layers_are_those_of_the_command_line(lm, prompts):
    cmap = CausalMap(lm, prompts)
    # 8/30 and 20/30 of four blocks
    assert (cmap.source, cmap.target) == default_layers(lm) == (1, 3)
    assert CausalMap(lm, prompts, target=4).source == 1
    assert CausalMap(lm, prompts, 2).target == 3
    assert AdapterMap(lm, prompts).target == 3


def test_a_fit_without_a_scale_is_the_fit_at_the_calibrated_one():
    map = smooth()
    found = fit(map, Exponential(3), seed=5, progress=False)
    by_hand = calibrate(map, seed=5, progress=False)
    same = fit(map, Exponential(3, by_hand.scale), seed=5, progress=False)
    assert found.calibration == by_hand
    assert same.calibration is None
    assert found.features.scale == by_hand.scale
    assert torch.equal(found.features.V, same.features.V)
    assert found.features.meta["calibration"] == by_hand.describe()
    assert found.features.meta["method"] == same.features.meta["method"]


def test_all_seeds_are_fitted_at_one_scale():
    map = smooth()
    found = fit_seeds(map, Exponential(3), 2, seed=5, progress=False)
    by_hand = calibrate(map, seed=5, progress=False)
    same = fit_seeds(map, Exponential(3, by_hand.scale), 2, seed=5, progress=False)
    assert found.calibration == by_hand
    assert found.features.meta["stability"] == same.features.meta["stability"]


def test_settings_that_cannot_work_are_refused_before_the_scale_is_calibrated():
    map = smooth()
    with pytest.raises(MelboError, match="num_factors is 100"):
        fit(map, Linear(100), progress=False)
    assert map.passes == 0


def test_a_method_by_itself_needs_its_scale():
    with pytest.raises(MelboError, match=r"scale is None.*melbo\.calibrate finds one"):
        Random(2).check(smooth())


def test_adapters_are_calibrated_along_gradients_as_by_hand(lm, prompts):
    amap = AdapterMap(lm, prompts)
    found = fit(amap, Random(2), progress=False)
    assert isinstance(found.features, AdapterSet)
    assert found.features.scale == calibrate(amap, progress=False).scale
