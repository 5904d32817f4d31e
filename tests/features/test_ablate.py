from weakref import ref

import pytest
import torch
from cases import FLOAT32_INSIDE, TINY, WINDOW, tiny_model
from toys import directions
from transformers import AutoModelForCausalLM

from melbo import MelboError, ablate
from melbo.models.weights.embedding_matrices import embeddings
from melbo.models.weights.output_matrices import added_by, attention_output, output_matrices

# models that do not add a sum of matrix products: the stream itself goes through a norm
NOT_FOUND = {"opt_post_norm"}


def written(lm, ids):
    """Sums that every block adds to the stream ``[depth, n, T, d]``, its start, and the logits."""
    entered, left = [], []

    def enter(block, args, kwargs):
        entered.append(args[0] if args else kwargs["hidden_states"])

    def leave(block, args, out):
        left.append(out[0] if isinstance(out, tuple) else out)

    handles = [b.register_forward_pre_hook(enter, with_kwargs=True) for b in lm.blocks]
    handles += [b.register_forward_hook(leave) for b in lm.blocks]
    with torch.no_grad():
        logits = lm.model(ids).logits
    for handle in handles:
        handle.remove()
    return torch.stack(left) - torch.stack(entered), entered[0], logits


IDS = torch.tensor([[5, 9, 17, 23, 31, 40], [2, 11, 60, 4, 8, 77]])


# all others are tried by research.compatibility
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mixtral"])
def test_no_block_writes_along_what_is_ablated_and_all_is_put_back(name):
    lm = tiny_model(name)
    V = directions(2, lm.width).to(lm.dtype)
    before = {k: t.clone() for k, t in lm.model.state_dict().items()}
    added, _, logits = written(lm, IDS)
    along = (added @ V.T).abs().max()
    with ablate(lm, 3.0 * V):
        ablated, _, changed = written(lm, IDS)
        assert (ablated @ V.T).abs().max() < (1e-4 if name in FLOAT32_INSIDE else 1e-5) * along
        assert not torch.allclose(changed, logits)
        for w in output_matrices(lm):
            if w.gain is None:
                assert (w.weight.movedim(w.axis, -1) @ V.T).abs().max() < 1e-6
    assert all(torch.equal(before[k], t) for k, t in lm.model.state_dict().items())
    assert torch.equal(written(lm, IDS)[2], logits)


@pytest.mark.parametrize("name", sorted(set(TINY) - NOT_FOUND))
def test_every_block_has_its_output_matrices(name):
    lm = tiny_model(name)
    found = output_matrices(lm)
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
def test_output_matrices_are_the_ones_that_everybody_knows(name, expected):
    found = [w for w in output_matrices(tiny_model(name)) if w.block == 0]
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


HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "mixtral"])
def test_half_precision_has_the_same_output_matrices(name, dtype):
    lm, exact = tiny_model(name, dtype), tiny_model(name, torch.float32)
    named, modules = dict(lm.model.named_parameters()), set(lm.model.modules())
    found, truth = output_matrices(lm), output_matrices(exact)
    seen, expected = (
        [(w.name, w.axis, w.factor, w.gain is None) for w in each] for each in (found, truth)
    )
    assert seen == expected
    for w in found:  # the model's own, not the copy's that was looked at
        assert named[w.name] is w.weight
        assert w.weight.dtype == dtype
        assert {w.module, w.summand} <= modules


@pytest.mark.parametrize(("dtype", "number"), [(torch.bfloat16, 4), (torch.float32, 0)])
def test_half_precision_takes_the_memory_of_one_block(dtype, number):
    lm = tiny_model("llama", dtype)
    copies = []

    def note(block, args):
        if block not in set(lm.blocks):
            assert all(earlier() is None for earlier in copies)
            copies.append(ref(block))

    for block in lm.blocks:
        block.register_forward_pre_hook(note)  # is copied with the block
    output_matrices(lm)
    assert len(copies) == number


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "mixtral"])
def test_half_precision_is_ablated_to_its_rounding_and_put_back_bit_by_bit(name, dtype, rounding):
    lm = tiny_model(name, dtype)
    V = directions(2, lm.width)
    before = {k: t.clone() for k, t in lm.model.state_dict().items()}
    logits = written(lm, IDS)[2]
    exact = written(tiny_model(name, torch.float32), IDS)[0]
    with ablate(lm, V):
        for w in output_matrices(lm):
            if w.gain is None:
                W = w.weight.double().movedim(w.axis, -1)
                assert ((W @ V.T).abs() <= rounding * W.abs() @ V.abs().T).all()
        # seen without the rounding of the stream
        again = tiny_model(name, torch.float32)
        again.model.load_state_dict(lm.model.state_dict())
        along = written(again, IDS)[0].double() @ V.T
        assert along.norm() < 5 * rounding * (exact.double() @ V.T).norm()
    assert all(torch.equal(before[k], t) for k, t in lm.model.state_dict().items())
    assert torch.equal(written(lm, IDS)[2], logits)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_token_of_huge_norm_hides_no_small_summand(dtype):
    lm = tiny_model("llama", dtype)
    expected = [w.name for w in output_matrices(lm)]
    sink = torch.ones(8, 1, dtype=dtype)
    sink[0] = 1e6  # whatever the blocks behind add there drowns in the stream's rounding
    lm.blocks[0].mlp.down_proj.register_forward_hook(lambda module, args, out: out * sink)
    assert [w.name for w in output_matrices(lm)] == expected


def test_a_block_that_adds_nothing_has_no_output_matrices():
    lm = tiny_model("llama")
    for matrix in (lm.blocks[1].self_attn.o_proj, lm.blocks[1].mlp.down_proj):
        matrix.weight.zero_()
    assert [w.block for w in output_matrices(lm)] == [0, 0, 2, 2, 3, 3]


@pytest.mark.parametrize("name", ["llama", "granite", "olmo2", "mixtral", "falcon_grouped", "gptj"])
@torch.no_grad()
def test_what_the_output_matrices_add_is_all_that_a_block_adds(name):
    lm = tiny_model(name)
    part = lm.capture(IDS, torch.ones_like(IDS, dtype=torch.bool), 1, 2)
    [call], spread = part.calls, part.spread(part.hidden)
    summands = {w.summand: w for w in output_matrices(lm) if w.block == 1}
    parts = [call(part.hidden, spread, {}, added_by(w)) for w in summands.values()]
    assert len(parts) == 2
    tolerance = 1e-6 if name in FLOAT32_INSIDE else 1e-10
    assert torch.allclose(sum(parts), part.output - part.hidden, atol=tolerance)
    assert {w.factor for w in summands.values()} == {1.0} or name == "granite"


# --- the output of attention


@pytest.mark.parametrize("name", sorted(set(TINY) - NOT_FOUND))
def test_the_output_of_attention_or_of_what_stands_in_its_place(name):
    lm = tiny_model(name)
    assert WINDOW < 8  # so that the first token is out of sight
    found = [attention_output(lm, block) for block in range(lm.depth)]
    assert [w.block for w in found] == list(range(lm.depth))
    known = ("attn.", "attention.", ".conv.", ".temporal_block.")
    assert all(any(part in w.name for part in known) for w in found)
    assert {w.name for w in found} <= {w.name for w in output_matrices(lm)}


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", ["gemma3", "gptj", "mixtral"])
def test_half_precision_has_the_same_attention_output(name, dtype):
    half, exact = (attention_output(tiny_model(name, d), 1) for d in (dtype, torch.float32))
    assert half.name == exact.name


def test_blocks_that_mix_nothing_and_blocks_that_are_not_there():
    lm = tiny_model("llama")
    lm.blocks[1].self_attn.v_proj.weight.zero_()
    assert "self_attn" in attention_output(lm, 2).name
    says = (
        "block 1 of llama writes nothing that depends on other tokens: expected attention; choose"
    )
    with pytest.raises(MelboError, match=f"{says} another"):
        attention_output(lm, 1)
    for block in (-1, 4):
        says = f"block is {block}, but llama has 4 blocks: expected 0 to 3"
        with pytest.raises(MelboError, match=says):
            attention_output(lm, block)
    with pytest.raises(MelboError, match="neither edited nor read"):
        attention_output(tiny_model("opt_post_norm"), 1)


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
