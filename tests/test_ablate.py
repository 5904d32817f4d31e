import pytest
import torch
from cases import FLOAT32_INSIDE, TINY, tiny_model
from toys import directions
from transformers import AutoModelForCausalLM

from melbo import MelboError, ablate
from melbo.writers import embeddings, writers

#: What these add to the stream is not a sum of matrix products.
NOT_FOUND = {"opt_post_norm"}  # the stream itself goes through a norm


def written(lm, ids):
    """What every block adds to the stream, ``[depth, n, T, d]``."""
    entered, left = [], []
    handles = []
    for block in lm.blocks:
        handles.append(block.register_forward_pre_hook(lambda m, a, k: entered.append(a[0] if a else k["hidden_states"]), with_kwargs=True))
        handles.append(block.register_forward_hook(lambda m, a, out: left.append(out[0] if isinstance(out, tuple) else out)))
    with torch.no_grad():
        logits = lm.model(ids).logits
    for handle in handles:
        handle.remove()
    return torch.stack(left) - torch.stack(entered), entered[0], logits


IDS = torch.tensor([[5, 9, 17, 23, 31, 40], [2, 11, 60, 4, 8, 77]])


@pytest.mark.parametrize("name", sorted(TINY))
def test_no_block_writes_along_what_is_ablated_and_all_is_put_back(name):
    lm = tiny_model(name)
    if name in NOT_FOUND:
        with pytest.raises(MelboError, match="cannot be edited"):
            writers(lm)
        return
    V = directions(2, lm.width).to(lm.dtype)
    before = {k: t.clone() for k, t in lm.model.state_dict().items()}
    added, _, logits = written(lm, IDS)
    along = (added @ V.T).abs().max()
    with ablate(lm, 3.0 * V):
        ablated, _, changed = written(lm, IDS)
        assert (ablated @ V.T).abs().max() < (1e-4 if name in FLOAT32_INSIDE else 1e-5) * along
        assert not torch.allclose(changed, logits)
        for w in writers(lm):
            if w.gain is None:
                assert (w.weight.movedim(w.axis, -1) @ V.T).abs().max() < 1e-6
    assert all(torch.equal(before[k], t) for k, t in lm.model.state_dict().items())
    assert torch.equal(written(lm, IDS)[2], logits)


@pytest.mark.parametrize("name", sorted(set(TINY) - NOT_FOUND))
def test_every_block_has_its_writers(name):
    lm = tiny_model(name)
    found = writers(lm)
    assert {w.block for w in found} == set(range(lm.depth))
    assert all(w.weight.shape[w.axis] == lm.width for w in found)
    named = dict(lm.model.named_parameters())
    assert all(named[w.name] is w.weight for w in found)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", ["self_attn.o_proj.weight", "mlp.down_proj.weight"]),
        ("gemma3", ["self_attn.o_proj.weight", "mlp.down_proj.weight"]),
        ("gpt2", ["attn.c_proj.weight", "mlp.c_proj.weight"]),
        ("gpt_neox", ["attention.dense.weight", "mlp.dense_4h_to_h.weight"]),
        ("mixtral", ["self_attn.o_proj.weight", "mlp.experts.down_proj"]),
    ],
)
def test_writers_are_the_ones_that_everybody_knows(name, expected):
    found = [w for w in writers(tiny_model(name)) if w.block == 0]
    assert [w.name.split(".", 3)[-1] for w in found] == expected


@pytest.mark.parametrize("name", ["llama", "llama_tied", "gpt2"])
def test_embeddings_are_taken_out_where_asked(name):
    lm = tiny_model(name)
    v = directions(1, lm.width).to(lm.dtype)
    tables = {w.name: w.weight.clone() for w in embeddings(lm)}
    assert len(tables) == (2 if name == "gpt2" else 1)
    with ablate(lm, v, embedding=True):
        added, entering, _ = written(lm, IDS)
        assert ((entering + added.sum(0)) @ v.T).abs().max() < 1e-5  # nothing in the stream at all
    assert all(torch.equal(tables[w.name], w.weight) for w in embeddings(lm))


@pytest.mark.parametrize("name", ["llama", "llama_tied", "gpt2"])
@pytest.mark.parametrize("embedding", [False, True])
def test_an_ablated_model_that_is_saved_gives_the_same_logits(name, embedding, tmp_path):
    lm = tiny_model(name, torch.float32)
    with ablate(lm, directions(2, lm.width), embedding):
        lm.model.save_pretrained(tmp_path)
        logits = written(lm, IDS)[2]
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, logits)


def test_it_is_undone_when_something_fails_inside():
    lm = tiny_model("llama")
    before = lm.blocks[0].mlp.down_proj.weight.clone()
    with pytest.raises(KeyError), ablate(lm, directions(1, lm.width)):
        raise KeyError
    assert torch.equal(lm.blocks[0].mlp.down_proj.weight, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_says_what_to_do(dtype):
    with pytest.raises(MelboError, match="float32 only; load it in that"):
        writers(tiny_model("llama", dtype))


def test_directions_that_repeat_count_once():
    lm = tiny_model("llama")
    v = directions(1, lm.width)
    with ablate(lm, v):
        once = written(lm, IDS)[2]
    with ablate(lm, torch.cat([v, -2 * v, v])):
        assert torch.allclose(written(lm, IDS)[2], once, atol=1e-9)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (torch.ones(1, 5), r"got directions of shape \(1, 5\), expected \[k, 32\]"),
        (torch.ones(0, 32), "expected"),
        (torch.eye(32), "with k below 32"),
        (torch.zeros(1, 32), "zero or not finite"),
        (torch.full((1, 32), torch.nan), "zero or not finite"),
    ],
)
def test_directions_that_cannot_be_ablated(rows, says):
    with pytest.raises(MelboError, match=says), ablate(tiny_model("llama"), rows):
        pass
