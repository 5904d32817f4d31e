"""Edits of offloaded weights, noticed by the maps that were made before."""

from pathlib import Path

import numpy
import pytest
import torch
from offloaded import offloaded
from slow_maps import RAGGED, prompts_of
from toys import directions

from melbo import CausalMap, MelboError, ablate
from melbo.models.weights.offloaded import kept_elsewhere

pytestmark = pytest.mark.slow

STALE = "are not those with which this map was made"
CASES = [("llama", "cpu"), ("llama_tied", "disk"), ("gemma3", "mixed"), ("mixtral", "disk")]


def made(name, how, tmp_path):
    lm = offloaded(name, how, torch.float32, tmp_path)
    cmap = CausalMap(lm, prompts_of(RAGGED), 1, lm.depth, target_tokens=2)
    return lm, cmap, directions(2, lm.width).float()


@pytest.mark.parametrize(("name", "how"), CASES)
def test_an_ablation_after_the_map_is_noticed_and_its_end_too(name, how, tmp_path):
    lm, cmap, V = made(name, how, tmp_path)
    before = cmap.value(V)
    with ablate(lm, V), pytest.raises(MelboError, match=STALE):
        cmap.value(V)
    assert torch.equal(cmap.value(V), before)
    with ablate(lm, V):
        inside = CausalMap(lm, cmap.prompts, 1, lm.depth, target_tokens=2)
        inside.value(V)
    with pytest.raises(MelboError, match=STALE):
        inside.value(V)


@pytest.mark.parametrize(("name", "how"), CASES)
def test_other_values_where_weights_are_kept_are_noticed(name, how, tmp_path):
    lm, cmap, V = made(name, how, tmp_path)
    cmap.value(V)
    last = [m for m in lm.blocks[-1].modules() if "_hf_hook" in m.__dict__]
    kept = [each for module in last for each in kept_elsewhere(module)]
    file = next((each for each in kept if isinstance(each, Path)), None)
    if how == "cpu":
        assert file is None
        for each in kept:
            if isinstance(each, torch.Tensor):
                each.data.mul_(1.5)  # no new version to torch
    else:
        assert file is not None
        for each in kept:
            if isinstance(each, Path):
                values = numpy.memmap(each, dtype="float32", mode="r+")
                values *= 1.5
                values.flush()
    with pytest.raises(MelboError, match=STALE):
        cmap.value(V)
