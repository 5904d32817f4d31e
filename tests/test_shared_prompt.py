import sys

import pytest
import torch
from cases import FLOAT32_INSIDE, TINY, tiny_model
from toys import directions

from melbo import shared_prompt
from melbo.edit import Add, Several, edit
from melbo.generate import decode
from melbo.shared_prompt import Heads, can_read_once, read_once

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


#: Windows, states or keys of their own that a second pass over a prompt does not find again: their prompts are read whole.
WHOLE = OWN_ROWS


@pytest.mark.parametrize("name", sorted(TINY))
@torch.no_grad()
def test_a_prompt_read_in_two_passes_is_what_it_is_in_one(name):
    lm = tiny_model(name)
    place = Add(1, 2.0 * directions(5, lm.width), where="prompt", skip_first=True)
    assert can_read_once(lm, place, split=True) == (name not in WHOLE)
    if name in WHOLE:
        return
    prompts = [(*range(3, 12), *rest) for rest in ((20, 21, 22), (23,))]
    heads = Heads(lm, [prompts[0]] * 5 + [prompts[1]] * 5, place.rows(torch.arange(10) % 5), [*range(5)] * 2)
    assert len(heads) == 9
    for p, prompt in enumerate(prompts):
        cache, logits = read_once(lm, torch.tensor([prompt[9:]]), place, 5, heads.cache(range(5 * p, 5 * p + 5), place))
        alone, expected = read_once(lm, torch.tensor([prompt]), place, 5)
        following = torch.arange(20, 25)[:, None]
        ours, after = (lm.model(input_ids=following, past_key_values=c).logits for c in (cache, alone))
        tolerance = 1e-4 if name in FLOAT32_INSIDE else 1e-5
        assert torch.allclose(logits, expected, atol=tolerance, rtol=1e-4)
        assert torch.allclose(ours, after, atol=tolerance, rtol=1e-4)


PLACES = {
    "none": lambda lm: Several(()),
    "one for all": lambda lm: Add(1, 4.0 * directions(1, lm.width)[0]),
    "all": lambda lm: Add(1, 4.0 * directions(3, lm.width)[torch.arange(12) % 3]),
    "prompt": lambda lm: Add(2, 4.0 * directions(3, lm.width)[torch.arange(12) % 3], where="prompt"),
    "generated": lambda lm: Add(0, 4.0 * directions(3, lm.width)[torch.arange(12) % 3], where="generated"),
    "first": lambda lm: Add(1, 4.0 * directions(3, lm.width)[torch.arange(12) % 3], skip_first=True),
    "last": lambda lm: Add(1, 4.0 * directions(3, lm.width)[torch.arange(12) % 3], last=2),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("order", ["by prompt", "mixed"])
def test_replies_are_the_same_whatever_is_read_beforehand(place, order, monkeypatch):
    """Four prompts of different lengths that begin alike, three rows each: in groups that share a prompt, and one by one."""
    lm = tiny_model("llama")
    edits = PLACES[place](lm)
    ends = ((20,), (21, 22, 23), (24, 25), (26, 27, 28, 29))
    asked = [(*range(3, 13), *ends[i // 3]) for i in range(12)]
    alike = [i % 3 for i in range(12)]
    monkeypatch.setattr(sys.modules["melbo.generate"], "_WORTH_SHARING", 2 if order == "by prompt" else 100)
    read = count_tokens(lm)
    ours = decode(lm, asked, edits, 5, batch_size=6, progress=False, alike=None if place in ("none", "one for all") else alike)
    shared = sum(read)
    monkeypatch.setattr(shared_prompt, "_LEAST", 1000)
    read.clear()
    assert ours == decode(lm, asked, edits, 5, batch_size=6, progress=False)
    assert (shared < sum(read)) == (place != "last")  # which is counted from the end of the prompt


def count_tokens(lm):
    """Tokens that the last block reads, pass after pass."""
    read = []
    lm.blocks[-1].register_forward_hook(lambda block, args, out: read.append(args[0].shape[:2].numel()))
    return read


def test_heads_of_few_rows_are_kept_at_a_time(monkeypatch):
    lm = tiny_model("llama")
    place = Add(1, directions(6, lm.width))
    monkeypatch.setattr(shared_prompt, "_KEPT", 4)
    asked = [(*range(3, 13), i) for i in range(2) for _ in range(6)]
    heads = Heads(lm, asked, place.rows(torch.arange(12) % 6), [*range(6)] * 2)
    for batch in (range(3), range(3, 6), range(6, 9)):
        rows = place.rows(torch.tensor(batch) % 6)
        with torch.no_grad(), edit(lm, rows):
            own = lm.model(input_ids=heads.ids.expand(3, -1), use_cache=True).past_key_values
        for ours, theirs in zip(heads.spread(batch, rows).layers, own.layers, strict=True):
            assert torch.allclose(ours.keys, theirs.keys, atol=1e-6)
        assert sum(map(len, heads._kept)) <= 4
    heads.forget()
    assert not heads._kept
    assert len(Heads(lm, asked, place.rows(torch.arange(12) % 6))) == 0  # no two rows are known to be alike
