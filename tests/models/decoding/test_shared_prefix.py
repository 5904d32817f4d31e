"""Prompts and prefixes that are read once, against rows that each read their own."""

import math

import pytest
import torch
from cases import FLOAT32_INSIDE, TINY, tiny_model
from toys import directions

from melbo.models.decoding.decode import Batching, decode
from melbo.models.decoding.shared_prefix import SharedPrefix, can_read_once, read_once
from melbo.models.edits import Add, EditSequence, edit

#: The blocks or the cache do not let a batch grow on the way; their rows are read one by one.
OWN_ROWS = {"gpt_bigcode", "lfm2", "recurrent_gemma"}
#: States, or rotations that depend on the length of the whole: their prompts are read whole.
WHOLE = {*OWN_ROWS, "phi3"}
#: Windows and biases that count padding, which prompts of different lengths have after a prefix.
COUNTS_PADDING = {"cohere2", "exaone4", "gemma2", "gemma3", "gpt_neo", "gpt_oss"} | {
    *("mistral", "mpt", "olmo3", "qwen2_sliding", "starcoder2")
}
BEGIN = tuple(range(3, 13))
ENDS = ((20,), (21, 22, 23), (24, 25), (26, 27, 28, 29))
ASKED = [(*BEGIN, *ENDS[i // 3]) for i in range(12)]
ALIKE = [i % 3 for i in range(12)]


def three(lm, size=4.0):
    """A direction for each of three rows, again and again."""
    return size * directions(3, lm.width)[ALIKE]


@pytest.mark.parametrize("name", sorted(TINY))
@torch.no_grad()
def test_rows_that_share_a_prompt_read_what_each_would_alone(name):
    lm = tiny_model(name)
    five = Add(1, 2.0 * directions(5, lm.width), skip_first=True)
    assert can_read_once(lm, five) == (name not in OWN_ROWS)
    if name in OWN_ROWS:
        return
    ids = torch.arange(3, 12)[None]  # longer than the sliding windows
    cache, logits = read_once(lm, ids, five, 5)
    with edit(lm, five):
        own = lm.model(input_ids=ids.expand(5, -1), use_cache=True)
        following = torch.arange(20, 25)[:, None]
        after = lm.model(input_ids=following, past_key_values=own.past_key_values).logits
        ours = lm.model(input_ids=following, past_key_values=cache).logits
    tolerance = 1e-4 if name in FLOAT32_INSIDE else 1e-5
    assert torch.allclose(logits, own.logits[:, -1].float(), atol=tolerance, rtol=1e-4)
    assert torch.allclose(ours, after, atol=tolerance, rtol=1e-4)


def with_and_without(lm, edits, alike, apart):
    """First logits, replies and number of tokens read; with a shared prefix and without one.

    Rows of a prompt run apart from others, or side by side.
    """
    results = []
    pass_rows = 0 if apart else math.inf
    settings = {"progress": False, "alike": alike}
    # what can be shared is tried once
    decode(lm, ASKED, edits, 1, Batching(6, pass_rows=pass_rows), **settings)
    for least in (8, 1000):
        read, logits = [], {}

        def note(block, args, out, read=read):
            read.append((out[0] if isinstance(out, tuple) else out).shape[:2].numel())

        batching = Batching(6, pass_rows=pass_rows, least_prefix=least)
        with lm.blocks[-1].register_forward_hook(note):
            replies = decode(lm, ASKED, edits, 5, batching, logits.__setitem__, **settings)
        results.append((torch.stack([logits[i] for i in range(12)]), replies, sum(read)))
    return results


@pytest.mark.parametrize("name", sorted(TINY))
@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("layer", [None, 1])
def test_a_prompt_read_in_two_passes_is_what_it_is_in_one(name, layer, apart):
    """Four prompts of different lengths that begin alike, longer than sliding windows."""
    lm = tiny_model(name, torch.float32)  # in float64 some softmaxes overflow on padding
    edits, alike = EditSequence(()), None
    if layer is not None:
        edits, alike = Add(layer, three(lm, 2.0), where="prompt"), ALIKE
    (logits, replies, read), (truth, own, whole) = with_and_without(lm, edits, alike, apart)
    assert torch.allclose(logits, truth, atol=1e-4, rtol=1e-4)
    assert replies == own
    assert (read < whole) == (name not in (WHOLE if apart else WHOLE | COUNTS_PADDING))


EDITS = {
    "none": lambda lm: EditSequence(()),
    "one for all": lambda lm: Add(1, 4.0 * directions(1, lm.width)[0]),
    "all": lambda lm: Add(1, three(lm)),
    "prompt": lambda lm: Add(2, three(lm), where="prompt"),
    "generated": lambda lm: Add(0, three(lm), where="generated"),
    "first": lambda lm: Add(1, three(lm), skip_first=True),
    "last": lambda lm: Add(1, three(lm), last=2),
}


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("apart", [True, False])
def test_replies_are_the_same_whatever_is_read_beforehand(name, apart):
    lm = tiny_model("llama")
    alike = None if name in ("none", "one for all") else ALIKE
    ours, plain = with_and_without(lm, EDITS[name](lm), alike, apart)
    assert torch.allclose(ours[0], plain[0], atol=1e-5, rtol=1e-4)
    assert ours[1] == plain[1]
    # the last tokens are counted from the end of the prompt
    assert (ours[2] < plain[2]) == (name != "last")


def test_few_prefixes_are_kept_at_a_time():
    lm = tiny_model("llama")
    alike = [0, 1, 2, 3, 4, 5, 3, 3, 0, 1, 2, 5]
    edits = Add(1, directions(6, lm.width)[alike])
    prefix = SharedPrefix(lm, [(*BEGIN, i // 6) for i in range(12)], edits, alike, kept=4)
    for batch in ([0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11], [8, 9, 10]):
        rows = edits.rows(torch.tensor(batch))
        with torch.no_grad(), edit(lm, rows):
            own = lm.model(input_ids=prefix.ids.expand(3, -1), use_cache=True).past_key_values
        for ours, theirs in zip(prefix.spread(batch, rows).layers, own.layers, strict=True):
            assert torch.allclose(ours.keys, theirs.keys, atol=1e-6)
            assert torch.allclose(ours.values, theirs.values, atol=1e-6)
        assert sum(map(len, prefix._kept)) <= 4
    # what is there stays: rows come round in the same order
    assert list(prefix._kept) == [(0, 1, 2)]


def test_rows_that_are_not_known_to_be_alike_have_no_prefix():
    lm = tiny_model("llama")
    edits = Add(1, directions(6, lm.width)[[0, 1, 2, 3, 4, 5, 3, 3, 0, 1, 2, 5]])
    assert len(SharedPrefix(lm, [(*BEGIN, i) for i in range(12)], edits)) == 0


def test_prefixes_make_room_when_memory_runs_out():
    lm = tiny_model("llama")
    edits, passes = Add(1, three(lm)), []
    plain = decode(lm, ASKED, edits, 4, progress=False)
    decode(lm, ASKED, edits, 1, Batching(6), progress=False, alike=ALIKE)  # trials

    def limited(model, args, kwargs):
        ids = kwargs["input_ids"]
        if ids.shape[1] > 1:  # prompts, or parts of them
            passes.append(tuple(ids.shape))
        if ids.shape[1] == len(BEGIN):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with lm.model.register_forward_pre_hook(limited, with_kwargs=True):
        found = decode(lm, ASKED, edits, 4, Batching(6), progress=False, alike=ALIKE)
    assert found == plain
    assert passes == [(1, 10), (6, 12), (6, 14)]  # batches are as large as before


def test_two_rows_that_are_alike_may_have_a_prefix():
    lm = tiny_model("llama")
    edits = Add(1, directions(1, lm.width)[[0, 0]])
    asked = [(*BEGIN, 5), (*BEGIN, 6, 7)]
    assert len(SharedPrefix(lm, asked, edits, [4, 4])) == 10
    shared = decode(lm, asked, edits, 4, progress=False, alike=[4, 4])
    assert shared == decode(lm, asked, edits, 4, progress=False)
    assert decode(lm, [], edits, 4, progress=False) == []
