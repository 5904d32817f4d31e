import math
import sys

import pytest
import torch
from cases import FLOAT32_INSIDE, TINY, tiny_model
from toys import directions

from melbo.features.generate import decode
from melbo.models.edits import Add, EditSequence, edit
from melbo.models.shared_prefix import Heads, can_read_once, read_once

#: Where the blocks or the cache do not let a batch grow on the way; their rows are read one by one.
OWN_ROWS = {"gpt_bigcode", "lfm2", "recurrent_gemma"}


@pytest.mark.parametrize("name", sorted(TINY))
@torch.no_grad()
def test_rows_that_share_a_prompt_read_what_each_would_alone(name):
    lm = tiny_model(name)
    place = Add(1, 2.0 * directions(5, lm.width), skip_first=True)
    assert can_read_once(lm, place) == (name not in OWN_ROWS)
    if name in OWN_ROWS:
        return
    ids = torch.arange(3, 12)[None]  # longer than the sliding windows
    cache, logits = read_once(lm, ids, place, 5)
    with edit(lm, place):
        own = lm.model(input_ids=ids.expand(5, -1), use_cache=True)
        following = torch.arange(20, 25)[:, None]
        after = lm.model(input_ids=following, past_key_values=own.past_key_values).logits
        ours = lm.model(input_ids=following, past_key_values=cache).logits
    tolerance = 1e-4 if name in FLOAT32_INSIDE else 1e-5
    assert torch.allclose(logits, own.logits[:, -1].float(), atol=tolerance, rtol=1e-4)
    assert torch.allclose(ours, after, atol=tolerance, rtol=1e-4)


#: States, or rotations that depend on the length of the whole: their prompts are read whole.
WHOLE = {*OWN_ROWS, "phi3"}
#: Windows and biases that count padding, as where a head and prompts of different lengths stand apart.
COUNTS_PADDING = {
    "cohere2", "exaone4", "gemma2", "gemma3", "gpt_neo", "gpt_oss", "mistral", "mpt", "olmo3", "qwen2_sliding", "starcoder2",
}  # fmt: skip
ENDS = ((20,), (21, 22, 23), (24, 25), (26, 27, 28, 29))
ASKED = [(*range(3, 13), *ENDS[i // 3]) for i in range(12)]
ALIKE = [i % 3 for i in range(12)]


def both(lm, place, monkeypatch, alike=ALIKE, **settings):
    """First logits, replies, and how many tokens were read; by heads, and without them."""
    found = []
    decode(
        lm, ASKED, place, 1, progress=False, alike=alike, **settings
    )  # what can be done is tried once
    for least in (8, 1000):
        monkeypatch.setattr(shared_prompt, "_LEAST", least)
        read, logits = [], {}
        handle = lm.blocks[-1].register_forward_hook(
            lambda block, args, out, read=read: read.append(out_of(out).shape[:2].numel())
        )
        replies = decode(
            lm,
            ASKED,
            place,
            5,
            first_logits=logits.__setitem__,
            progress=False,
            alike=alike,
            **settings,
        )
        handle.remove()
        found.append((torch.stack([logits[i] for i in range(12)]), replies, sum(read)))
    return found


def out_of(out):
    return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize("name", sorted(TINY))
@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("layer", [None, 1])
def test_a_prompt_read_in_two_passes_is_what_it_is_in_one(name, layer, apart, monkeypatch):
    """Four prompts of different lengths, longer than sliding windows, that begin alike; three rows each, in groups of a prompt and side by side."""
    lm = tiny_model(name, torch.float32)  # in float64 some softmaxes overflow on padding
    monkeypatch.setattr(sys.modules["melbo.features.generate"], "_PASS", 0 if apart else math.inf)
    place = (
        EditSequence(())
        if layer is None
        else Add(layer, 2.0 * directions(3, lm.width)[ALIKE], where="prompt")
    )
    (logits, replies, read), (truth, own, whole) = both(
        lm, place, monkeypatch, None if layer is None else ALIKE, batch_size=6
    )
    assert torch.allclose(logits, truth, atol=1e-4, rtol=1e-4)
    assert replies == own
    assert (read < whole) == (name not in (WHOLE if apart else WHOLE | COUNTS_PADDING))


PLACES = {
    "none": lambda lm: EditSequence(()),
    "one for all": lambda lm: Add(1, 4.0 * directions(1, lm.width)[0]),
    "all": lambda lm: Add(1, 4.0 * directions(3, lm.width)[ALIKE]),
    "prompt": lambda lm: Add(2, 4.0 * directions(3, lm.width)[ALIKE], where="prompt"),
    "generated": lambda lm: Add(0, 4.0 * directions(3, lm.width)[ALIKE], where="generated"),
    "first": lambda lm: Add(1, 4.0 * directions(3, lm.width)[ALIKE], skip_first=True),
    "last": lambda lm: Add(1, 4.0 * directions(3, lm.width)[ALIKE], last=2),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("apart", [True, False])
def test_replies_are_the_same_whatever_is_read_beforehand(place, apart, monkeypatch):
    lm = tiny_model("llama")
    monkeypatch.setattr(sys.modules["melbo.features.generate"], "_PASS", 0 if apart else math.inf)
    edits = PLACES[place](lm)
    ours, plain = both(
        lm, edits, monkeypatch, None if place in ("none", "one for all") else ALIKE, batch_size=6
    )
    assert torch.allclose(ours[0], plain[0], atol=1e-5, rtol=1e-4)
    assert ours[1] == plain[1]
    assert (ours[2] < plain[2]) == (place != "last")  # which is counted from the end of the prompt


def test_few_heads_are_kept_at_a_time(monkeypatch):
    lm = tiny_model("llama")
    place = Add(1, directions(6, lm.width)[[0, 1, 2, 3, 4, 5, 3, 3, 0, 1, 2, 5]])
    alike = [0, 1, 2, 3, 4, 5, 3, 3, 0, 1, 2, 5]
    monkeypatch.setattr(shared_prompt, "_KEPT", 4)
    heads = Heads(lm, [(*range(3, 13), i // 6) for i in range(12)], place, alike)
    for batch in ([0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11], [8, 9, 10]):
        rows = place.rows(torch.tensor(batch))
        with torch.no_grad(), edit(lm, rows):
            own = lm.model(input_ids=heads.ids.expand(3, -1), use_cache=True).past_key_values
        for ours, theirs in zip(heads.spread(batch, rows).layers, own.layers, strict=True):
            assert torch.allclose(ours.keys, theirs.keys, atol=1e-6)
            assert torch.allclose(ours.values, theirs.values, atol=1e-6)
        assert sum(map(len, heads._kept)) <= 4
    assert list(heads._kept) == [
        (0, 1, 2)
    ]  # what is there stays: rows come round in the same order
    assert (
        len(Heads(lm, [(*range(3, 13), i) for i in range(12)], place)) == 0
    )  # no two rows are known to be alike


def test_heads_make_room_when_memory_runs_out(monkeypatch):
    lm = tiny_model("llama")
    place = Add(1, directions(3, lm.width)[ALIKE])
    generation, sizes = sys.modules["melbo.features.generate"], []
    plain, real = decode(lm, ASKED, place, 4, progress=False), generation._decode_batch

    def limited(lm, batch, prompts, heads, *rest):
        sizes.append((len(batch), len(heads)))
        if len(heads):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(lm, batch, prompts, heads, *rest)

    monkeypatch.setattr(generation, "_decode_batch", limited)
    assert decode(lm, ASKED, place, 4, batch_size=6, progress=False, alike=ALIKE) == plain
    assert sizes == [(6, 10), (6, 0), (6, 0)]


def test_two_rows_that_are_alike_may_have_a_head():
    lm = tiny_model("llama")
    place = Add(1, directions(1, lm.width)[[0, 0]])
    asked = [(*range(3, 13), 5), (*range(3, 13), 6, 7)]
    assert len(Heads(lm, asked, place, [4, 4])) == 10
    assert decode(lm, asked, place, 4, progress=False, alike=[4, 4]) == decode(
        lm, asked, place, 4, progress=False
    )
    assert decode(lm, [], place, 4, progress=False) == []
