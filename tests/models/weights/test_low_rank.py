"""Rank-one edits of matrices that do not see the rows of a batch, and merges that do not hold."""

import pytest
import torch
from adapters import a_map, a_set
from cases import tiny_model

from melbo import MelboError, steer
from melbo.models.weights.low_rank import find_sites

IDS = torch.tensor([[5, 9, 17, 23, 31, 40]])


@torch.no_grad()
def logits(lm, ids=IDS):
    return lm.model(ids).logits


# OPT hands its MLP all tokens of all rows in one
@pytest.mark.parametrize("name", ["opt", "biogpt", "gpt2", "gemma3", "falcon_alibi"])
def test_the_mlp_is_steered_alone_and_row_by_row_as_it_is_merged(name):
    cmap = a_map(name, matrix="mlp")
    bank, lm = a_set(cmap, 3), cmap.lm
    merged = []
    for i in range(3):
        with bank[i].merge(lm):
            merged.append(logits(lm)[0])
        with steer(lm, bank[i]):
            assert torch.allclose(logits(lm)[0], merged[i], atol=1e-9)
    with steer(lm, bank, per_row=True):
        assert torch.allclose(logits(lm, IDS.repeat(3, 1)), torch.stack(merged), atol=1e-9)
        one = IDS[:, :1].repeat(3, 1)
        assert logits(lm, one).shape[0] == 3


@pytest.mark.parametrize("name", ["opt", "llama"])
def test_a_batch_of_other_rows_is_refused(name):
    cmap = a_map(name, matrix="mlp")
    bank = a_set(cmap, 3)
    says = "got 3 adapters for a batch of 2 rows"
    with pytest.raises(MelboError, match=says), steer(cmap.lm, bank, per_row=True):
        logits(cmap.lm, IDS.repeat(2, 1))


def test_the_map_of_an_mlp_that_flattens_is_the_change_with_merged_weights():
    cmap = a_map("opt", matrix="mlp")
    bank, lm = a_set(cmap, 2), cmap.lm
    assert find_sites(lm, (0, 1), "mlp")[0].name == "model.decoder.layers.0.fc2"
    found = cmap.value(bank.scale * bank.V)
    with torch.no_grad():
        for i in range(2):
            changes = []
            for tokens in cmap.prompts.tokens:
                row = list(tokens)
                before = (
                    lm.activations(row, cmap.target) if cmap.target < lm.depth else last(lm, row)
                )
                with bank[i].merge(lm):
                    after = last(lm, row) if cmap.target == lm.depth else lm.activations(row, 3)
                changes.append((after - before)[-3:].mean(0))
            assert torch.allclose(found[i], torch.stack(changes).mean(0), atol=1e-9)


def last(lm, row):
    ids = torch.tensor([row])
    return lm.capture(ids, torch.ones_like(ids, dtype=torch.bool), 0, lm.depth).output[0]


def test_a_merge_that_does_not_hold_is_found_out_and_all_is_put_back():
    cmap = a_map("llama", torch.float32)
    bank, lm = a_set(cmap, 1), cmap.lm
    matrix = lm.blocks[1].self_attn.o_proj
    copy = matrix.weight.clone()
    matrix.forward = lambda x: x @ copy.T  # the weight is not used any more
    says = "layers.1.self_attn.o_proj does not give what the edit"
    with pytest.raises(MelboError, match=says), bank.merge(lm):
        pass
    expected = tiny_model("llama", torch.float32).model.state_dict()
    assert all(torch.equal(expected[k], t) for k, t in lm.model.state_dict().items())


@pytest.mark.parametrize("scale", [0.01, 3.0])
def test_half_precision_is_merged_up_to_its_rounding(scale):
    cmap = a_map("llama", torch.float32)
    lm = tiny_model("llama", torch.bfloat16)
    bank = a_set(cmap, 1, scale)
    with bank.merge(lm):
        found = logits(lm).float()
    with steer(lm, bank):
        expected = logits(lm).float()
    assert (found - expected).norm() < 0.05 * expected.norm()
